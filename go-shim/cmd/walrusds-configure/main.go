// Command walrusds-configure brings the configuration of an existing repo in line with the
// WALRUSDS_* environment variables. The container image runs it at each start.
//
//	walrusds-configure [-check] [-other-index] [repo]
//
// It changes nothing but the walrusds datastore inside Datastore.Spec. The settings that identify
// the data (publisher and aggregator URLs, table) may not change: such a repo would point at other
// blocks. Another index (indexPath, postgresURL) is refused unless -other-index says that it holds
// the blocks.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"syscall"

	walrusds "github.com/walrusds/walrusds/go-shim"
	"github.com/walrusds/walrusds/go-shim/envspec"
)

func main() {
	check := flag.Bool("check", false, "say what would change, and change nothing")
	other := flag.Bool("other-index", false, "take another index: it holds the blocks, or the old ones may be lost to view")
	flag.Parse()
	repo := flag.Arg(0)
	if repo == "" {
		repo = os.Getenv("IPFS_PATH")
	}
	if repo == "" {
		home, _ := os.UserHomeDir()
		repo = filepath.Join(home, ".ipfs")
	}
	if err := run(repo, *check, *other); err != nil {
		fmt.Fprintf(os.Stderr, "walrusds-configure: %s\n", strings.TrimPrefix(err.Error(), "walrusds: "))
		os.Exit(1)
	}
}

func run(repo string, check, otherIndex bool) error {
	path := filepath.Join(repo, "config")
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	// Numbers and unknown members must keep their values.
	var config map[string]json.RawMessage
	if err := decode(raw, &config); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var datastore map[string]json.RawMessage
	if err := decode(config["Datastore"], &datastore); err != nil {
		return fmt.Errorf("%s: Datastore: %w", path, err)
	}
	var spec map[string]any
	if err := decode(datastore["Spec"], &spec); err != nil {
		return fmt.Errorf("%s: Datastore.Spec: %w", path, err)
	}
	old, err := find(spec)
	if err != nil {
		return err
	}
	values, err := envspec.Parse(os.Environ())
	if err != nil {
		return err
	}
	updated, err := values.Update(old)
	if err != nil {
		return err
	}
	changed := difference(old, updated)
	if len(changed) == 0 {
		return nil
	}
	before, err := walrusds.DiskSpec(old)
	if err != nil {
		return fmt.Errorf("the datastore in %s: %w", path, err)
	}
	after, err := walrusds.DiskSpec(updated)
	if err != nil {
		return err
	}
	var identity []string
	for _, key := range difference(before, after) {
		identity = append(identity, fmt.Sprintf("%s is %q in the repo and %q in %s", key, before[key], after[key], envspec.VarName(key)))
	}
	if len(identity) > 0 {
		return fmt.Errorf("this repo belongs to other data:\n  %s\nThese settings identify the blocks of a repo and cannot change. "+
			"Restore the old values, or start with a new repo (another volume)", strings.Join(identity, "\n  "))
	}
	if journal, _ := old["journalPath"].(string); journal != "" && updated["journalPath"] != journal {
		if !filepath.IsAbs(journal) {
			journal = filepath.Join(repo, journal)
		}
		if left, _ := filepath.Glob(filepath.Join(journal, "*.segment")); len(left) > 0 {
			return fmt.Errorf("the write journal %s holds blocks that are not on Walrus yet: let the node run with it until no *.segment "+
				"file is left (WALRUSDS_DRAIN_PARTIAL_PACKS=true, and a stop in order), then change journalPath", journal)
		}
	}
	if err := checkIndex(repo, old, updated); err != nil && !otherIndex {
		return err
	} else if err != nil {
		fmt.Println("walrusds: this is another index; blocks known to the old one only will not be found, and are not renewed")
	}
	fmt.Printf("walrusds: changed in the configuration: %s\n", strings.Join(changed, ", ")) // names only: values may be secrets
	if check {
		return nil
	}

	for k := range old {
		delete(old, k)
	}
	for k, v := range updated {
		old[k] = v
	}
	if datastore["Spec"], err = encode(spec, ""); err != nil {
		return err
	}
	if config["Datastore"], err = encode(datastore, ""); err != nil {
		return err
	}
	out, err := encode(config, "  ")
	if err != nil {
		return err
	}
	return replace(path, out)
}

// find returns the walrusds datastore inside a specification, itself and not a copy.
func find(spec map[string]any) (map[string]any, error) {
	var found []map[string]any
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if v["type"] == walrusds.TypeName {
				found = append(found, v)
				return
			}
			for _, child := range v {
				walk(child)
			}
		case []any:
			for _, child := range v {
				walk(child)
			}
		}
	}
	walk(spec)
	switch len(found) {
	case 0:
		return nil, errors.New("this repo has no walrusds datastore: it was initialized without the walrusds profile, and blocks it holds would be lost to view; start with a new repo (another volume)")
	case 1:
		return found[0], nil
	default:
		return nil, errors.New("this repo has more than one walrusds datastore: change its configuration by hand")
	}
}

func difference(a, b map[string]any) []string {
	var keys []string
	for k := range a {
		if _, ok := b[k]; !ok {
			keys = append(keys, k)
		}
	}
	for k, v := range b {
		if !reflect.DeepEqual(normal(a[k]), normal(v)) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	return keys
}

// normal makes numbers from the file and from the environment comparable.
func normal(v any) any {
	switch v := v.(type) {
	case json.Number:
		if f, err := v.Float64(); err == nil {
			return f
		}
	case int64:
		return float64(v)
	}
	return v
}

func decode(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	return d.Decode(into)
}

func encode(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	err := e.Encode(v)
	return b.Bytes(), err
}

// replace writes the file beside the old one and swaps them: the file holds the node's private key.
func replace(path string, data []byte) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".config-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(info.Mode().Perm())
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); err == nil && ok && os.Geteuid() == 0 {
		// Kubo must be able to read it, whoever runs this.
		err = f.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
