"""What would stop a run or spoil its labels, measured before it starts."""
