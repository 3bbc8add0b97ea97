"""What is missing, who builds it, and what came of it: planning, workers, pools."""
