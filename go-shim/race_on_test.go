//go:build race

package walrusds

// raceEnabled: timings mean little then.
const raceEnabled = true
