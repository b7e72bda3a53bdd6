"""Data files to rows of tokens: read, checked, split and rendered. Training and evaluation share it."""
