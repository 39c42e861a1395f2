"""What the records say: tables, comparisons behind the claims, figures."""
