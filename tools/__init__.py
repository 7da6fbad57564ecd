"""What measures the product; nothing that the product needs."""
