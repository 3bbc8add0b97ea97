"""Networks of official teachers, written anew and checked against their keys and outputs."""
