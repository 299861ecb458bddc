// The external Kubo plugin: go build -buildmode=plugin. It fits only an ipfs that was built from
// the same sources with the same Go; scripts/plugin-build.sh takes care of that.
package main

import (
	walrus "github.com/walrusds/walrusds/go-shim/plugin"
)

// Plugins is looked up by Kubo's loader.
var Plugins = walrus.Plugins

func main() {} // demanded by the linker, never called
