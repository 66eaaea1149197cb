package main

var builds []*figure
