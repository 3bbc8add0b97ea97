"""Every section of a recipe as a frozen dataclass, the pipeline's and the trainer's: both read and check all of it."""
