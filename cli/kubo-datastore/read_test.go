package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	ds "github.com/ipfs/go-datastore"
	badgerds "github.com/ipfs/go-ds-badger"
	flatfs "github.com/ipfs/go-ds-flatfs"
	leveldb "github.com/ipfs/go-ds-leveldb"
	pebbleds "github.com/ipfs/go-ds-pebble"
	fslock "github.com/ipfs/go-fs-lock"
)

// A kind is a type of datastore, as Kubo's profiles configure it.
type kind struct {
	name string
	// make opens it with Kubo's library, to write.
	make func(t *testing.T, path string) ds.Batching
	// spec is the configuration of a whole repo; the datastore is in "store".
	spec string
	// prefix is what the keys of blocks begin with in the datastore.
	prefix string
}

var kinds = []kind{
	{"flatfs", makeFlatfs, `{"type":"mount","mounts":[
		{"mountpoint":"/blocks","type":"measure","prefix":"flatfs.datastore",
		 "child":{"type":"flatfs","path":"store","shardFunc":"/repo/flatfs/shard/v1/next-to-last/2","sync":false}},
		{"mountpoint":"/","type":"measure","prefix":"leveldb.datastore",
		 "child":{"type":"levelds","path":"datastore","compression":"none"}}]}`, ""},
	{"levelds", makeLevel, `{"type":"mount","mounts":[
		{"mountpoint":"/","type":"measure","prefix":"leveldb.datastore",
		 "child":{"type":"levelds","path":"store","compression":"none"}}]}`, "/blocks"},
	{"badgerds", makeBadger, `{"type":"measure","prefix":"badger.datastore",
		"child":{"type":"badgerds","path":"store","syncWrites":false,"truncate":true}}`, "/blocks"},
	{"pebbleds", makePebble, `{"type":"measure","prefix":"pebble.datastore",
		"child":{"type":"pebbleds","path":"store","formatMajorVersion":16}}`, "/blocks"},
}

func makeFlatfs(t *testing.T, path string) ds.Batching {
	store, err := flatfs.CreateOrOpen(path, flatfs.NextToLast(2), false)
	check(t, err)
	return store
}

func makeLevel(t *testing.T, path string) ds.Batching {
	store, err := leveldb.NewDatastore(path, nil)
	check(t, err)
	return store
}

func makeBadger(t *testing.T, path string) ds.Batching {
	check(t, os.MkdirAll(path, 0o755))
	opts := badgerds.DefaultOptions
	opts.Logger = &badgerLog{}
	store, err := badgerds.NewDatastore(path, &opts)
	check(t, err)
	return store
}

func makePebble(t *testing.T, path string) ds.Batching {
	// An older format, which must stay as it is.
	old := &pebble.Options{FormatMajorVersion: pebble.FormatVirtualSSTables, Logger: quiet{}}
	store, err := pebbleds.NewDatastore(path, pebbleds.WithPebbleOpts(old))
	check(t, err)
	return store
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// blocks are some hundred blocks by their keys ("/CIQ…"), from empty ones to one of 2 MiB.
func blocks() map[string][]byte {
	random := rand.New(rand.NewSource(7))
	all := map[string][]byte{}
	for n := range 400 {
		size := random.Intn(3000)
		switch {
		case n == 0:
			size = 0
		case n == 1:
			size = 2 << 20
		case n%20 == 0:
			size = 256 << 10
		}
		value := make([]byte, size)
		random.Read(value)
		digest := sha256.Sum256(value)
		hash := append([]byte{0x12, 0x20}, digest[:]...)
		all["/"+base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(hash)] = value
	}
	return all
}

// makeRepo makes a repo with these blocks, and entries beside them.
func makeRepo(t *testing.T, k kind, blocks map[string][]byte) string {
	t.Helper()
	repo := t.TempDir()
	config := fmt.Sprintf(`{"Identity":{"PeerID":"x","PrivKey":"secret-private-key"},"Datastore":{"Spec":%s}}`, k.spec)
	check(t, os.WriteFile(filepath.Join(repo, "config"), []byte(config), 0o600))
	store := k.make(t, filepath.Join(repo, "store"))
	ctx := context.Background()
	batch, err := store.Batch(ctx)
	check(t, err)
	for key, value := range blocks {
		check(t, batch.Put(ctx, ds.NewKey(k.prefix+key), value))
	}
	if k.prefix != "" {
		for _, key := range []string{"/local/filesroot", "/pins/state", "/blocks-of-another", "/blockt/x"} {
			check(t, batch.Put(ctx, ds.NewKey(key), []byte("no block")))
		}
	}
	check(t, batch.Commit(ctx))
	check(t, store.Sync(ctx, ds.NewKey("/")))
	check(t, store.Close())
	return repo
}

// A result is what a run of the program has given.
type result struct {
	code   int
	blocks map[string][]byte
	whole  bool
	stderr string
}

func runWith(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(context.Background(), append([]string{"read"}, args...), strings.NewReader(stdin), &stdout, &stderr)
	r := result{code: code, stderr: stderr.String()}
	if stdout.Len() > 0 {
		r.blocks, r.whole = parse(t, stdout.Bytes())
	}
	if r.whole != (code == 0) {
		t.Errorf("exit code %d, and the stream is whole: %v", code, r.whole)
	}
	if (stderr.Len() > 0) != (code != 0) {
		t.Errorf("exit code %d, and standard error has: %s", code, r.stderr)
	}
	return r
}

// parse reads a stream as the protocol says.
func parse(t *testing.T, data []byte) (map[string][]byte, bool) {
	t.Helper()
	rest, ok := bytes.CutPrefix(data, []byte("WDSBLK1\n"))
	if !ok {
		t.Fatalf("a stream that begins with %q", data[:min(len(data), 8)])
	}
	take := func(n uint64) []byte {
		if uint64(len(rest)) < n {
			t.Fatalf("the stream ends within a frame: %d bytes of %d", len(rest), n)
		}
		part := rest[:n]
		rest = rest[n:]
		return part
	}
	found := map[string][]byte{}
	for len(rest) > 0 {
		keyLen := binary.LittleEndian.Uint32(take(4))
		if keyLen == 0xFFFFFFFF {
			if count := binary.LittleEndian.Uint64(take(8)); count != uint64(len(found)) || len(rest) > 0 {
				t.Fatalf("the end names %d blocks of %d, and %d bytes follow", count, len(found), len(rest))
			}
			return found, true
		}
		valueLen := binary.LittleEndian.Uint32(take(4))
		key := string(take(uint64(keyLen)))
		if _, twice := found[key]; twice {
			t.Fatalf("%s comes twice", key)
		}
		found[key] = take(uint64(valueLen))
	}
	return found, false
}

func same(t *testing.T, found, expected map[string][]byte) {
	t.Helper()
	for key, value := range expected {
		if got, ok := found[key]; !ok || !bytes.Equal(got, value) {
			t.Fatalf("%s: %d bytes found (%v), %d expected", key, len(got), ok, len(value))
		}
	}
	if len(found) != len(expected) {
		t.Fatalf("%d blocks found, %d expected", len(found), len(expected))
	}
}

// contents are the files of a directory, to see whether something has changed them.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	check(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		all[path] = fmt.Sprintf("%x", sha256.Sum256(data))
		return err
	}))
	return all
}

func TestEveryDatastoreIsRead(t *testing.T) {
	all := blocks()
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			repo := makeRepo(t, k, all)
			before := contents(t, repo)
			for _, args := range [][]string{{}, {"--readers", "1"}, {"--no-lock"}} {
				r := runWith(t, "", append(args, "--repo", repo)...)
				if r.code != 0 {
					t.Fatalf("%v: %d %s", args, r.code, r.stderr)
				}
				same(t, r.blocks, all)
			}
			after := contents(t, repo)
			for path, sum := range before {
				if after[path] != sum {
					t.Errorf("%s has changed", path)
				}
			}
			for path := range after {
				if _, ok := before[path]; !ok && !strings.HasSuffix(path, "/LOCK") {
					t.Errorf("%s is new", path)
				}
			}
			r := runWith(t, "", "--repo", repo, "--recover")
			same(t, r.blocks, all)
		})
	}
}

func TestAnEmptyDatastoreIsAWholeStream(t *testing.T) {
	for _, k := range kinds {
		r := runWith(t, "", "--repo", makeRepo(t, k, nil))
		if r.code != 0 || len(r.blocks) != 0 {
			t.Errorf("%s: %d, %d blocks: %s", k.name, r.code, len(r.blocks), r.stderr)
		}
	}
}

func TestASpecNamesTheDatastore(t *testing.T) {
	all := blocks()
	flat, pebble := makeRepo(t, kinds[0], all), makeRepo(t, kinds[3], all)
	flatEntry := fmt.Sprintf(`{"type":"flatfs","path":%q,"shardFunc":"/repo/flatfs/shard/v1/next-to-last/2","sync":true%%s}`,
		filepath.Join(flat, "store"))
	file := filepath.Join(t.TempDir(), "spec")
	check(t, os.WriteFile(file, []byte(kinds[3].spec), 0o600))
	for name, args := range map[string][]string{
		"an entry without mountpoint": {fmt.Sprintf(flatEntry, ""), "--spec", "-"},
		"an entry with mountpoint":    {fmt.Sprintf(flatEntry, `,"mountpoint":"/blocks"`), "--spec", "-"},
		"a file, of a whole repo":     {"", "--spec", file, "--repo", pebble},
	} {
		t.Run(name, func(t *testing.T) {
			r := runWith(t, args[0], args[1:]...)
			if r.code != 0 {
				t.Fatal(r.stderr)
			}
			same(t, r.blocks, all)
		})
	}
	r := runWith(t, "", "--repo", pebble, "--prefix", "/local")
	same(t, r.blocks, map[string][]byte{"/filesroot": []byte("no block")})
	t.Setenv("IPFS_PATH", pebble)
	same(t, runWith(t, "").blocks, all)
}

func TestWrongSpecsSayWhatIsWrong(t *testing.T) {
	repo := makeRepo(t, kinds[0], map[string][]byte{"/CIQA": []byte("x")})
	empty := t.TempDir()
	flat := func(shard, path string) string {
		return fmt.Sprintf(`{"type":"flatfs","path":%q,"shardFunc":%q}`, path, shard)
	}
	next := "/repo/flatfs/shard/v1/next-to-last/2"
	for _, c := range []struct{ spec, text string }{
		{`{"type":"flatfs"`, "no Datastore.Spec"},
		{`{} {}`, "more follows"},
		{`{}`, `"type": nothing found`},
		{`{"type":7}`, `"type": a number found`},
		{`{"type":"zfs","path":"x"}`, "this type is not known here; known are badgerds, flatfs, levelds, pebbleds, s3ds"},
		{`{"type":"s3ds","accessKey":"TOPSECRET","secretKey":"TOPSECRET","bucket":"b"}`, `"region": nothing found`},
		{`{"type":"walrusds","postgresURL":"postgres://u:TOPSECRET@h/d"}`, "walrusds import reads it by itself"},
		{`{"type":"measure","prefix":"x"}`, `"child" of measure: nothing found`},
		{`{"type":"mount","mounts":{}}`, `"mounts": an object found`},
		{`{"type":"mount","mounts":["TOPSECRET"]}`, `an entry of "mounts": a text found`},
		{`{"type":"mount","mounts":[{"type":"flatfs"}]}`, `"mountpoint": nothing found`},
		{`{"type":"mount","mounts":[{"mountpoint":"/pins","type":"mem"}]}`, "no mount holds /blocks: mounts at /pins found"},
		{`{"type":"mount","mounts":[{"mountpoint":"/blocks/x","type":"mem"}]}`, "inside of /blocks"},
		{`{"type":"mount","mounts":[{"mountpoint":"/","type":"flatfs"}]}`, "keys of one part"},
		{`{"type":"levelds"}`, `"path": nothing found`},
		{`{"type":"levelds","path":"nowhere"}`, "there is no directory"},
		{`{"type":"badgerds","path":"config"}`, "config is no directory"},
		{flat(next, empty), "there is no file " + empty + "/SHARDING"},
		{flat("/repo/flatfs/shard/v1/prefix/2", "store"), `"/repo/flatfs/shard/v1/next-to-last/2" expected`},
		{flat("suffix", "store"), `"shardFunc": "suffix" found`},
		{fmt.Sprintf(`{"type":"levelds","path":%q}`, empty), "there is no file CURRENT"},
		{fmt.Sprintf(`{"type":"badgerds","path":%q}`, empty), "there is no file MANIFEST"},
		{fmt.Sprintf(`{"type":"pebbleds","path":%q}`, empty), "there is no Pebble database"},
	} {
		r := runWith(t, c.spec, "--spec", "-", "--repo", repo)
		if r.code != exitError || !strings.Contains(r.stderr, c.text) || r.blocks != nil {
			t.Errorf("%s: %d %s", c.spec, r.code, r.stderr)
		}
		if strings.Contains(r.stderr, "TOPSECRET") {
			t.Errorf("a secret is shown: %s", r.stderr)
		}
	}
	if entries, err := os.ReadDir(empty); err != nil || len(entries) > 0 {
		t.Errorf("a directory without a datastore has become one: %v %v", entries, err)
	}
	r := runWith(t, flat(next, "store"), "--spec", "-")
	if r.code != exitError || !strings.Contains(r.stderr, "name the repo with --repo") {
		t.Errorf("%d %s", r.code, r.stderr)
	}
	for _, args := range [][]string{{"--nonsense"}, {"more"}, {"--readers", "-1"}} {
		if r := runWith(t, "", args...); r.code != exitUsage {
			t.Errorf("%v: %d %s", args, r.code, r.stderr)
		}
	}
	for _, args := range [][]string{nil, {"write"}} {
		if code := run(context.Background(), args, nil, io.Discard, io.Discard); code != exitUsage {
			t.Errorf("%v: %d", args, code)
		}
	}
	r = runWith(t, "", "--repo", empty)
	if r.code != exitError || !strings.Contains(r.stderr, "an IPFS repo is expected") {
		t.Errorf("%d %s", r.code, r.stderr)
	}
}

func TestARepoWhoseConfigWasChangedIsRefused(t *testing.T) {
	repo := makeRepo(t, kinds[0], blocks())
	noted := `{"mounts":[{"mountpoint":"/blocks","path":%q,"shardFunc":"/repo/flatfs/shard/v1/next-to-last/2","type":"flatfs"},
		{"mountpoint":"/","path":"datastore","type":"levelds"}],"type":"mount"}`
	file := filepath.Join(repo, "datastore_spec")
	check(t, os.WriteFile(file, fmt.Appendf(nil, noted, "blocks"), 0o600))
	r := runWith(t, "", "--repo", repo)
	if r.code != exitError || !strings.Contains(r.stderr, `datastore of path "blocks", and the config says store`) {
		t.Errorf("%d %s", r.code, r.stderr)
	}
	check(t, os.WriteFile(file, fmt.Appendf(nil, noted, "store"), 0o600))
	if r := runWith(t, "", "--repo", repo); r.code != 0 {
		t.Errorf("%d %s", r.code, r.stderr)
	}
}

func TestARepoInUseIsNotRead(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			repo := makeRepo(t, k, blocks())
			lock, err := fslock.Lock(repo, "repo.lock")
			check(t, err)
			r := runWith(t, "", "--repo", repo)
			if r.code != exitLocked || !strings.Contains(r.stderr, "another program has locked this repo") {
				t.Errorf("%d %s", r.code, r.stderr)
			}
			if r := runWith(t, "", "--repo", repo, "--no-lock"); r.code != 0 {
				t.Errorf("%d %s", r.code, r.stderr)
			}
			check(t, lock.Close())
			if r := runWith(t, "", "--repo", repo); r.code != 0 {
				t.Errorf("%d %s", r.code, r.stderr)
			}
			if k.name == "flatfs" {
				return // it has no lock of its own
			}
			store := k.make(t, filepath.Join(repo, "store"))
			if r := runWith(t, "", "--repo", repo, "--no-lock"); r.code != exitLocked {
				t.Errorf("%d %s", r.code, r.stderr)
			}
			check(t, store.Close())
		})
	}
}

// A daemon writes each block to .temp first: whoever empties that directory breaks its writes.
func TestFlatfsOfARunningDaemonIsLeftAsItIs(t *testing.T) {
	all := blocks()
	repo := makeRepo(t, kinds[0], all)
	path := filepath.Join(repo, "store")
	check(t, os.MkdirAll(filepath.Join(path, ".temp"), 0o755))
	check(t, os.WriteFile(filepath.Join(path, ".temp", "temp-1"), []byte("half a block"), 0o600))
	before := contents(t, repo)
	entry := fmt.Sprintf(`{"type":"flatfs","path":%q}`, path)
	for _, args := range [][]string{{"--repo", repo, "--no-lock"}, {"--spec", "-"}} {
		r := runWith(t, entry, args...)
		if r.code != 0 {
			t.Fatalf("%v: %d %s", args, r.code, r.stderr)
		}
		same(t, r.blocks, all)
		if after := contents(t, repo); !reflect.DeepEqual(before, after) {
			t.Errorf("%v: before %v, after %v", args, before, after)
		}
	}
	// A shard that lies on another disk.
	shards, err := filepath.Glob(filepath.Join(path, "*", "*.data"))
	check(t, err)
	shard, elsewhere := filepath.Dir(shards[0]), filepath.Join(t.TempDir(), "shard")
	check(t, os.Rename(shard, elsewhere))
	check(t, os.Symlink(elsewhere, shard))
	r := runWith(t, entry, "--spec", "-")
	same(t, r.blocks, all)
	// Nobody takes a directory that is away for an empty one.
	check(t, os.Remove(shard))
	check(t, os.Symlink(elsewhere+"-away", shard))
	if r := runWith(t, entry, "--spec", "-"); r.code != 1 {
		t.Errorf("%d %s", r.code, r.stderr)
	}
}

func TestAnInterruptedRunSaysSo(t *testing.T) {
	for _, k := range kinds {
		repo := makeRepo(t, k, blocks())
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		var stdout, stderr bytes.Buffer
		code := run(ctx, []string{"read", "--repo", repo}, nil, &stdout, &stderr)
		if _, whole := parse(t, stdout.Bytes()); whole || code != exitInterrupted {
			t.Errorf("%s: %d %s", k.name, code, &stderr)
		}
	}
}

func TestAReaderThatIsGoneEndsTheProgram(t *testing.T) {
	repo := makeRepo(t, kinds[2], blocks())
	var stderr bytes.Buffer
	code := run(context.Background(), []string{"read", "--repo", repo}, nil, gone{}, &stderr)
	if code != exitError || !strings.Contains(stderr.String(), "standard output: no reader") {
		t.Errorf("%d %s", code, &stderr)
	}
}

type gone struct{}

func (gone) Write([]byte) (int, error) { return 0, fmt.Errorf("no reader") }

func TestTheConfigOfKuboIsUnderstood(t *testing.T) {
	for _, k := range kinds {
		var s spec
		check(t, json.Unmarshal([]byte(k.spec), &s))
		chosen, err := choose(s, ds.NewKey("/blocks"), nil)
		check(t, err)
		expected := ds.NewKey(k.prefix)
		if chosen.kind != k.name || chosen.prefix != expected {
			t.Errorf("%s: %s with %s", k.name, chosen.kind, chosen.prefix)
		}
	}
}
