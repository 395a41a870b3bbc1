"""Stop rules, role StopRule (core.roles): (labels so far, draws left) -> draws to make next. Laws: testing.laws_voting."""
