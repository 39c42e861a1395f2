"""What training costs: the training-time table, and how it scales over processes."""
