package main

var lookups []*figure
