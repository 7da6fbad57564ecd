"""Which methods are built, and where. A key is a method's common name; an alias leads from a citation to it.

Nothing is imported here, torch least of all. After a change run ``python -m fedge.methods.generate``.
"""

# our key -> 'module:Class', sorted by stage and then as a reader would look for them
BUILT: dict[str, str] = {}

# the survey's key (survey.yaml), or another name in use -> our key
ALIASES: dict[str, str] = {}
