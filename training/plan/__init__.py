"""Will a run fit: what it will need of memory, known from shapes before it starts, and what would make it fit."""
