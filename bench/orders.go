package main

var orders []*figure
