"""What training costs: the training-time table."""
