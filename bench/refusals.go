package main

var refusals []*figure
