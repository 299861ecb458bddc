// Package plugin registers walrusds with Kubo: the datastore type and an init profile, both named
// "walrusds". Import it from Kubo's preload list, or build ./main as an external plugin.
package plugin

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"

	"github.com/ipfs/kubo/config"
	"github.com/ipfs/kubo/plugin"
	"github.com/ipfs/kubo/repo"
	"github.com/ipfs/kubo/repo/fsrepo"

	walrusds "github.com/walrusds/walrusds/go-shim"
	"github.com/walrusds/walrusds/go-shim/envspec"
)

// Plugins is what Kubo's loader looks for.
var Plugins = []plugin.Plugin{&walrusPlugin{}}

// Profile is the name of the init profile: `ipfs init --profile=walrusds`.
const Profile = "walrusds"

type walrusPlugin struct{}

var _ plugin.PluginDatastore = (*walrusPlugin)(nil)

func (*walrusPlugin) Name() string              { return "walrus-datastore-plugin" }
func (*walrusPlugin) Version() string           { return walrusds.Version }
func (*walrusPlugin) DatastoreTypeName() string { return walrusds.TypeName }

// Init runs at the start of every ipfs command, so it only adds the profile, which does the work
// when it is asked for.
func (*walrusPlugin) Init(*plugin.Environment) error {
	config.Profiles[Profile] = config.Profile{
		Description: `Keeps the node's blocks on Walrus (walrusds). The settings come from
environment variables: WALRUSDS_PUBLISHER_URL, WALRUSDS_AGGREGATOR_URL,
WALRUSDS_POSTGRES_URL or WALRUSDS_INDEX_PATH, and so on. Writes go to a
local journal first, unless WALRUSDS_JOURNAL_PATH is "off". What was
written or read stays in a cache on the local disk, unless
WALRUSDS_CACHE_PATH is "off".

This profile may only be applied when first initializing the node.
`,
		InitOnly:  true,
		Transform: applyProfile,
	}
	return nil
}

func applyProfile(c *config.Config) error {
	values, err := envspec.Parse(os.Environ())
	if err != nil {
		return err
	}
	child, err := values.New(repoPath(os.Args[1:]))
	if err != nil {
		return err
	}
	c.Datastore.Spec = map[string]any{
		"type": "mount",
		"mounts": []any{
			map[string]any{
				"mountpoint": "/blocks",
				"type":       "measure",
				"prefix":     "walrusds.datastore",
				"child":      child,
			},
			rootMount(c.Datastore.Spec),
		},
	}
	return nil
}

// repoPath returns the directory of the repo that an ipfs command is about: that of its option, or
// the usual one. A profile is not told.
func repoPath(args []string) string {
	for i, arg := range args {
		if path, ok := strings.CutPrefix(arg, "--repo-dir="); ok {
			return path
		}
		if arg == "--repo-dir" && i+1 < len(args) {
			return args[i+1]
		}
		if arg == "--" {
			break
		}
	}
	path, _ := fsrepo.BestKnownPath()
	return path
}

// rootMount returns what is mounted at "/" for everything that is not a block: as it stands in the
// configuration so far, else as in Kubo's own default.
func rootMount(spec map[string]any) map[string]any {
	for _, s := range []map[string]any{spec, config.DefaultDatastoreConfig().Spec} {
		mounts, _ := s["mounts"].([]any)
		for _, m := range mounts {
			if mount, _ := m.(map[string]any); mount["mountpoint"] == "/" {
				return maps.Clone(mount)
			}
		}
	}
	return map[string]any{
		"mountpoint": "/",
		"type":       "measure",
		"prefix":     "leveldb.datastore",
		"child": map[string]any{
			"type":        "levelds",
			"path":        "datastore",
			"compression": "none",
		},
	}
}

// DatastoreConfigParser validates the whole specification before anything is opened.
func (*walrusPlugin) DatastoreConfigParser() fsrepo.ConfigFromMap {
	return func(params map[string]any) (fsrepo.DatastoreConfig, error) {
		disk, err := walrusds.DiskSpec(params)
		if err != nil {
			return nil, err
		}
		return &datastoreConfig{spec: maps.Clone(params), disk: disk}, nil
	}
}

type datastoreConfig struct {
	spec, disk map[string]any
}

// DiskSpec returns a new map each time: Kubo adds the mount point to it.
func (c *datastoreConfig) DiskSpec() fsrepo.DiskSpec { return maps.Clone(c.disk) }

func (c *datastoreConfig) Create(path string) (repo.Datastore, error) {
	d, err := walrusds.Open(c.spec, path)
	if err != nil {
		return nil, fmt.Errorf("opening the datastore: %w", err)
	}
	return forKubo{d, new(sync.Once)}, nil
}
