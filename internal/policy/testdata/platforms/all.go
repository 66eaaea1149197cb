package platforms

var _ int = 1 << 40 // an error where int has 32 bits
