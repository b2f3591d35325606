"""Who takes part and where each sits: the roster, the tree, the quorum.

Standard library only and pure: the same roster, live set and seed give the same tree at every node.
"""

from topology.quorum import hidden, quorum_met, tells_apart
from topology.roster import Member, Roster, TopologyError
from topology.tree import Placement, Shape, Tree, check_placeable, place

__all__ = [
    "Member",
    "Placement",
    "Roster",
    "Shape",
    "TopologyError",
    "Tree",
    "check_placeable",
    "hidden",
    "place",
    "quorum_met",
    "tells_apart",
]
