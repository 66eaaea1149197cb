package main

var states []*figure
