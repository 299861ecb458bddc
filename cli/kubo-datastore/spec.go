package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	ds "github.com/ipfs/go-datastore"
	fslock "github.com/ipfs/go-fs-lock"
)

// A spec is the description of a datastore in Kubo's configuration. It may hold secrets, so it is
// never printed as a whole.
type spec map[string]any

// A leaf is the datastore that holds the blocks, without the mounts and wrappers around it.
type leaf struct {
	spec spec
	kind string
	// prefix is what the keys of blocks begin with in this datastore: "/" if it is mounted there.
	prefix ds.Key
	// repo is the directory from which a relative path is taken; empty if none is known.
	repo string
}

// String names the datastore in errors: its type, and its path if it has one.
func (l leaf) String() string {
	if path, ok := l.spec["path"].(string); ok {
		return fmt.Sprintf("datastore of type %s in %s", l.kind, path)
	}
	return "datastore of type " + l.kind
}

// path is the directory of the datastore, which must be there: no library may make a new one.
func (l leaf) path() (string, error) {
	path, ok := l.spec["path"].(string)
	if !ok || path == "" {
		return "", fmt.Errorf(`"path": %s found, the path of a directory expected`, shape(l.spec["path"]))
	}
	if !filepath.IsAbs(path) {
		if l.repo == "" {
			return "", fmt.Errorf("%q is relative to a repo: name the repo with --repo", path)
		}
		path = filepath.Join(l.repo, path)
	}
	switch info, err := os.Stat(path); {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("there is no directory %s", path)
	case err != nil:
		return "", err
	case !info.IsDir():
		return "", fmt.Errorf("%s is no directory", path)
	}
	return path, nil
}

// locate finds the datastore that holds the blocks.
func locate(o options, stdin io.Reader) (leaf, error) {
	prefix := ds.NewKey("/blocks")
	if o.prefix != "" {
		prefix = ds.NewKey(o.prefix)
	}
	var from string
	var whole spec
	var err error
	switch o.spec {
	case "":
		from = filepath.Join(o.repo, "config")
		whole, err = specOfConfig(from)
	case "-":
		from = "the spec on standard input"
		whole, err = decodeSpec(stdin)
	default:
		from = o.spec
		whole, err = specOfFile(from)
	}
	if err != nil {
		return leaf{}, fmt.Errorf("%s: %w", from, err)
	}
	found, err := choose(whole, prefix, nil)
	if err != nil {
		return leaf{}, fmt.Errorf("%s: %w", from, err)
	}
	// An entry of flatfs without its mountpoint: flatfs can be mounted at the blocks only.
	if found.kind == "flatfs" && found.prefix != ds.NewKey("/") {
		if found.mounted {
			return leaf{}, fmt.Errorf("%s: flatfs holds keys of one part and cannot hold %s at this mountpoint", from, prefix)
		}
		found.prefix = ds.NewKey("/")
	}
	if o.spec == "" {
		if err := sameAsOnDisk(o.repo, prefix, found); err != nil {
			return leaf{}, err
		}
	}
	return leaf{spec: found.spec, kind: found.kind, prefix: found.prefix, repo: o.repo}, nil
}

func specOfConfig(file string) (spec, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("there is no such file: an IPFS repo is expected (--repo DIR), or a spec (--spec FILE)")
	} else if err != nil {
		return nil, err
	}
	var config struct {
		Datastore struct {
			Spec spec
		}
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("it is no configuration of Kubo: %w", err)
	}
	if config.Datastore.Spec == nil {
		return nil, errors.New("it has no Datastore.Spec: a configuration of Kubo 0.5 or newer is expected")
	}
	return config.Datastore.Spec, nil
}

func specOfFile(file string) (spec, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return decodeSpec(f)
}

func decodeSpec(r io.Reader) (spec, error) {
	var s spec
	decoder := json.NewDecoder(r)
	if err := decoder.Decode(&s); err != nil {
		return nil, fmt.Errorf("it is no Datastore.Spec: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("it is no Datastore.Spec: more follows behind the object")
	}
	return s, nil
}

// A choice is a leaf among mounts and wrappers.
type choice struct {
	spec    spec
	kind    string
	prefix  ds.Key
	mounted bool
}

// choose goes through mounts and wrappers to the datastore that holds the keys below prefix.
// mountpoint is that of an enclosing mount.
func choose(s spec, prefix ds.Key, mountpoint *ds.Key) (choice, error) {
	if own, ok := s["mountpoint"]; ok && mountpoint == nil {
		at, ok := own.(string)
		if !ok {
			return choice{}, fmt.Errorf(`"mountpoint": %s found, a text such as "/blocks" expected`, shape(own))
		}
		key := ds.NewKey(at)
		mountpoint = &key
	}
	kind, ok := s["type"].(string)
	if !ok {
		return choice{}, fmt.Errorf(`"type": %s found, the name of a datastore expected (%s)`, shape(s["type"]), known())
	}
	switch kind {
	case "measure", "log":
		child, ok := s["child"].(map[string]any)
		if !ok {
			return choice{}, fmt.Errorf(`"child" of %s: %s found, an object expected`, kind, shape(s["child"]))
		}
		return choose(child, prefix, mountpoint)
	case "mount":
		return chooseMount(s, prefix)
	}
	chosen := choice{spec: s, kind: kind, prefix: prefix}
	if mountpoint != nil {
		if !holds(*mountpoint, prefix) {
			return choice{}, fmt.Errorf("its datastore is mounted at %s, which holds no keys below %s", mountpoint, prefix)
		}
		chosen.prefix = below(*mountpoint, prefix)
		chosen.mounted = true
	}
	return chosen, nil
}

func chooseMount(s spec, prefix ds.Key) (choice, error) {
	mounts, ok := s["mounts"].([]any)
	if !ok {
		return choice{}, fmt.Errorf(`"mounts": %s found, a list expected`, shape(s["mounts"]))
	}
	var best spec
	var bestAt ds.Key
	var all []string
	for _, entry := range mounts {
		mount, ok := entry.(map[string]any)
		if !ok {
			return choice{}, fmt.Errorf(`an entry of "mounts": %s found, an object expected`, shape(entry))
		}
		at, ok := mount["mountpoint"].(string)
		if !ok {
			return choice{}, fmt.Errorf(`"mountpoint": %s found, a text such as "/blocks" expected`, shape(mount["mountpoint"]))
		}
		key := ds.NewKey(at)
		all = append(all, key.String())
		switch {
		case holds(key, prefix):
			if best == nil || len(key.String()) > len(bestAt.String()) {
				best, bestAt = mount, key
			}
		case holds(prefix, key):
			return choice{}, fmt.Errorf("a datastore is mounted at %s, inside of %s: read each of them with its own --prefix", key, prefix)
		}
	}
	if best == nil {
		return choice{}, fmt.Errorf("no mount holds %s: mounts at %s found", prefix, strings.Join(all, ", "))
	}
	return choose(best, prefix, &bestAt)
}

// holds tells whether inner is the same as outer, or lies below it.
func holds(outer, inner ds.Key) bool {
	return outer == ds.NewKey("/") || inner == outer || inner.IsDescendantOf(outer)
}

// below is inner as a key within outer.
func below(outer, inner ds.Key) ds.Key {
	if outer == ds.NewKey("/") {
		return inner
	}
	return ds.NewKey(strings.TrimPrefix(inner.String(), outer.String()))
}

// sameAsOnDisk compares the configuration with what Kubo has noted in the repo about its
// datastores: a repo whose configuration was changed by hand would seem to be empty.
func sameAsOnDisk(repo string, prefix ds.Key, found choice) error {
	file := filepath.Join(repo, "datastore_spec")
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var whole spec
	if err := json.Unmarshal(data, &whole); err != nil {
		return fmt.Errorf("%s: it is not valid JSON: %w", file, err)
	}
	if _, typed := whole["type"]; !typed {
		return nil // what a datastore notes is its own affair: s3ds notes no type
	}
	noted, err := choose(whole, prefix, nil)
	if err != nil {
		return nil // an entry without a type, as s3ds notes it, among the mounts
	}
	for _, name := range []string{"type", "path", "shardFunc"} {
		was, is := noted.spec[name], found.spec[name]
		if was, ok := was.(string); ok && is != nil && was != is {
			return fmt.Errorf("%s says that the blocks are in a datastore of %s %q, and the config says %v: Kubo refuses such a repo; set the config right, or name the datastore that is meant with --spec",
				file, name, was, is)
		}
	}
	return nil
}

// shape describes a value of a spec without showing it, as it may be a secret.
func shape(value any) string {
	switch value := value.(type) {
	case nil:
		return "nothing"
	case string:
		if value == "" {
			return "an empty text"
		}
		return "a text"
	case bool:
		return "true or false"
	case float64:
		return "a number"
	case []any:
		return "a list"
	default:
		return "an object"
	}
}

// lockRepo takes the lock of a repo, as Kubo does. Where there is no repo there is none to lock.
func lockRepo(repo string) (unlock func(), err error) {
	if repo == "" {
		return func() {}, nil
	}
	if _, err := os.Stat(filepath.Join(repo, "config")); errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	}
	lock, err := fslock.Lock(repo, "repo.lock")
	switch {
	case errors.As(err, new(fslock.LockedError)):
		return nil, lockedError(fmt.Sprintf("%s: another program has locked this repo, such as a daemon that runs: end it first", filepath.Join(repo, "repo.lock")))
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%s: the lock of the repo cannot be taken without the right to write there; --no-lock reads without it, if no daemon runs: %w", repo, err)
	case err != nil:
		return nil, fmt.Errorf("%s: the lock of the repo cannot be taken: %w", repo, err)
	}
	return func() { _ = lock.Close() }, nil
}
