"""Files of MSBench and United-Perception: each key is mapped, refused with the reason, or has no effect and says so."""
