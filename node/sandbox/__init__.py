"""The kernel's walls around a node's rooms. Standard library only: it comes before every other import."""
