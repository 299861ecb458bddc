// Package walrusds is the Go face of the walrusds engine: a go-datastore that keeps its values on
// Walrus and its keys in an index (Postgres or SQLite).
//
// Everything of substance happens in the engine, a Rust library with a C ABI (include/walrusds.h).
// This package translates (contexts into cancel tokens and deadlines, go-datastore's batches and
// queries into single calls, error codes into Go errors), bounds how many goroutines wait in C, and
// makes one call of the lookups of many goroutines. It holds no data of its own.
//
// # Files
//
//   - datastore.go: Open, the point operations, Close
//   - batch.go, query.go: ds.Batch and ds.Query
//   - call.go: the frame of each call into the engine (gate, context, error); budget.go
//   - lookup.go: Has and GetSize of many goroutines, as one call
//   - queue.go: calls that are started and hold no thread
//   - errors.go: Error and its sentinels
//   - engine_cgo.go: the only file that talks C; link_*.go only say how to link
//
// # Threads
//
// A call into C occupies an operating system thread for as long as it lasts, and calls that wait
// for a network may last seconds. Kubo starts as many goroutines as it likes, so only a few of them
// wait in C (see the constants in call.go): lookups travel together, and reads and writes beyond
// the first few are started there and waited for here, where waiting is free and ends at once when
// the context does.
//
// # Linking
//
// The engine is linked statically by default, so that a plugin is one file. With the build tag
// walrusds_dynamic the shared library is used instead, looked up in ../lib relative to the plugin
// ($IPFS_PATH/plugins/walrusds.so finds $IPFS_PATH/lib/libwalrusds.so).
package walrusds
