//go:build !race

package conformance

const crowd = 10_000
