"""Section `[teacher]`: one frozen dataclass per teacher."""
