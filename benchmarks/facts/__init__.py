"""What is written beside a benchmark's figures."""
