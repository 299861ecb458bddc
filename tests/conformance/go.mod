module github.com/walrusds/walrusds/tests/conformance

go 1.22

require (
	github.com/ipfs/go-datastore v0.6.0
	github.com/walrusds/walrusds/go-shim v0.0.0
)

require (
	github.com/google/uuid v1.6.0 // indirect
	github.com/ipfs/go-detect-race v0.0.1 // indirect
	github.com/ipfs/go-log/v2 v2.5.1 // indirect
	github.com/jbenet/goprocess v0.1.4 // indirect
	github.com/mattn/go-isatty v0.0.20 // indirect
	go.uber.org/multierr v1.11.0 // indirect
	go.uber.org/zap v1.27.0 // indirect
	golang.org/x/sync v0.7.0 // indirect
	golang.org/x/sys v0.24.0 // indirect
)

replace github.com/walrusds/walrusds/go-shim => ../../go-shim
