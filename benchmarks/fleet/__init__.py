"""A fleet of unequal servers in virtual time, asked by several processes: what a strategy of routing is worth."""
