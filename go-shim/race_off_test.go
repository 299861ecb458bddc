//go:build !race

package walrusds

const raceEnabled = false
