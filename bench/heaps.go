package main

var heaps []*figure
