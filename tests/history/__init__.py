"""What runs saw, and an offline judge of it that knows none of the product's code. See FORMAT.md."""
