// Package server is empty. Its module exists to pin the version of Pebble, a
// tool in its go.mod, without adding Pebble's dependencies to the library's.
// From this folder,
//
//	GOWORK=off go tool pebble -help
//
// runs that version by hand, and GOWORK=off go mod download fetches all it
// needs, for a machine that will have no network later.
package server
