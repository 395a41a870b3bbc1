"""Other people's models in this program, behind the same verbs as the engine."""
