//go:build race

package conformance

// The race detector ends the program at 8,128 goroutines.
const crowd = 5_000
