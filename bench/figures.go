package main

import "slices"

// figures are all that there are, in the order of the table.
var figures = slices.Concat(lookups, heaps, states, refusals, orders, builds)
