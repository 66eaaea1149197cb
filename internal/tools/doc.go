// Package tools is empty. Its module exists to pin the versions of the tools
// that check the library, without adding their dependencies to the library's.
//
// Staticcheck, over all packages of the library, from the root folder:
//
//	$(GOWORK=off go -C internal/tools tool -n staticcheck) ./...
//
// The go command builds the tool, keeps it in its cache and prints its path.
// Staticcheck then loads packages as go build would: with GOWORK=off the root
// module alone, otherwise in the workspace.
package tools
