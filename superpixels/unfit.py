"""The error for values from outside, which a fault of the code that passes them on is not."""


class Unfit(ValueError):
    """Values that cannot be used as a sensor, a file or a network gave them; any other ValueError is our own fault."""
