package walrusds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	ds "github.com/ipfs/go-datastore"
	logging "github.com/ipfs/go-log/v2"
)

// TypeName is the datastore type under which Kubo's configuration refers to this package.
const TypeName = "walrusds"

// Version is the release of the shim and of the engine it is built with.
const Version = "0.1.0"

var log = logging.Logger(TypeName)

// Datastore is a go-datastore whose values live on Walrus. All its methods may be called from any
// number of goroutines.
type Datastore struct {
	eng     *engine
	closing chan struct{} // closed when Close begins
	once    sync.Once
	err     error // of Close

	lookups                               lookups
	reads, direct, starts, queries, syncs gate
	writes                                *budget
	queue                                 *queue
	tokens                                tokens
}

var (
	_ ds.Datastore           = (*Datastore)(nil)
	_ ds.Batching            = (*Datastore)(nil)
	_ ds.PersistentDatastore = (*Datastore)(nil)
	_ ds.GCDatastore         = (*Datastore)(nil)
	_ io.Closer              = (*Datastore)(nil)
)

// Open opens the datastore that spec describes (the keys of the Kubo configuration, see the
// README). Relative paths in spec are relative to repoPath.
func Open(spec map[string]any, repoPath string) (*Datastore, error) {
	config, err := encodeSpec(spec)
	if err != nil {
		return nil, err
	}
	eng, err := openEngine(config, repoPath)
	if err != nil {
		return nil, err
	}
	queue, err := newQueue()
	if err != nil {
		return nil, errors.Join(err, eng.close())
	}
	d := &Datastore{
		eng:     eng,
		closing: make(chan struct{}),
		reads:   make(gate, gateReads),
		direct:  make(gate, directCalls),
		starts:  make(gate, startCalls),
		queries: make(gate, gateQueries),
		syncs:   make(gate, gateSyncs),
		writes:  newBudget(writeBytes),
		queue:   queue,
	}
	d.lookups.closing, d.lookups.most = d.closing, leadLookups()
	eng.logs.table = tableOf(spec)
	metrics.add(eng, eng.logs.table)
	eng.logs.start(eng)
	// A backstop that only logs: closing from a finalizer would hide the mistake, and block the one
	// goroutine that runs all finalizers.
	runtime.SetFinalizer(d, func(d *Datastore) {
		metrics.remove(d.eng)
		log.Error("a datastore was dropped without Close: what it has not written yet may be lost, and its threads stay")
	})
	return d, nil
}

// DiskSpec validates spec in full and returns the settings that identify its data: exactly
// aggregatorURL, publisherURL and table, in the engine's normal form. The caller owns the map.
func DiskSpec(spec map[string]any) (map[string]any, error) {
	config, err := encodeSpec(spec)
	if err != nil {
		return nil, err
	}
	raw, err := engineDiskSpec(config)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf("walrusds: unreadable disk spec from the engine: %w", err)
	}
	return out, nil
}

// ConfigKey describes one key of the configuration.
type ConfigKey struct {
	Key     string `json:"key"`
	Type    string `json:"type"` // string, integer, number or boolean
	Default any    `json:"default"`
	Secret  bool   `json:"secret"`
	Doc     string `json:"doc"`
}

// ConfigKeys lists every key that Open understands, as the engine itself describes them.
func ConfigKeys() ([]ConfigKey, error) {
	raw, err := engineConfigKeys()
	if err != nil {
		return nil, err
	}
	var keys []ConfigKey
	if err := json.Unmarshal(raw, &keys); err != nil {
		return nil, fmt.Errorf("walrusds: unreadable list of configuration keys from the engine: %w", err)
	}
	return keys, nil
}

// encodeSpec removes the keys that belong to Kubo and not to walrusds.
func encodeSpec(spec map[string]any) ([]byte, error) {
	own := make(map[string]any, len(spec))
	for k, v := range spec {
		switch k {
		case "type", "mountpoint", "prefix":
			continue
		}
		own[k] = v
	}
	config, err := json.Marshal(own)
	if err != nil {
		// The error of encoding/json would print the value, and the value may be a secret.
		return nil, &Error{Code: CodeConfig, Message: "the configuration holds a value that JSON cannot express"}
	}
	return config, nil
}

// Get returns the value of key as the caller's own copy, or ds.ErrNotFound.
func (d *Datastore) Get(ctx context.Context, key ds.Key) (value []byte, err error) {
	if err := d.usable(ctx); err != nil {
		return nil, err
	}
	ctx, span := startSpan(ctx, "get")
	if span != nil {
		defer func() { endSpan(span, traced(err), keyOf(key.String()), bytesOf(len(value))) }()
	}
	if err := d.reads.enter(ctx, d.closing); err != nil {
		return nil, err
	}
	defer d.reads.leave()
	value, found, err := d.read(ctx, key.String())
	if err != nil {
		return nil, contextual(ctx, err)
	}
	if !found {
		return nil, ds.ErrNotFound // bare: Kubo compares with ==
	}
	return value, nil
}

func (d *Datastore) read(ctx context.Context, key string) (value []byte, found bool, err error) {
	if !d.direct.tryEnter() {
		c, err := d.run(ctx, func(o callOptions, q queueID, tag uint64) (completion, bool, error) {
			return d.eng.getStart(o, key, q, tag)
		})
		if err != nil || !c.found {
			return nil, false, err
		}
		return c.value.take(), true, nil
	}
	defer d.direct.leave()
	c, err := d.watch(ctx)
	if err != nil {
		return nil, false, err
	}
	defer c.end()
	return d.eng.get(c.opts, key)
}

// Has tells whether key is there.
func (d *Datastore) Has(ctx context.Context, key ds.Key) (bool, error) {
	_, found, err := d.size(ctx, key.String())
	return found, err
}

// GetSize returns the length of the value of key, or -1 and ds.ErrNotFound.
func (d *Datastore) GetSize(ctx context.Context, key ds.Key) (int, error) {
	size, found, err := d.size(ctx, key.String())
	if err != nil {
		return -1, err
	}
	if !found {
		return -1, ds.ErrNotFound
	}
	return int(size), nil
}

func (d *Datastore) size(ctx context.Context, key string) (size uint64, found bool, err error) {
	if err := d.usable(ctx); err != nil {
		return 0, false, err
	}
	if size, found, known := d.eng.peekSize(key); known {
		return size, found, nil
	}
	ctx, span := startSpan(ctx, "lookup")
	size, found, err = d.lookups.get(ctx, d, key)
	if span != nil {
		endSpan(span, err, keyOf(key))
	}
	return size, found, err
}

// ask answers a batch of lookups with one call into the engine.
func (d *Datastore) ask(ctx context.Context, batch []*lookup) error {
	c, err := d.watch(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	return contextual(ctx, d.eng.getSizes(c.opts, batch))
}

// askAlone looks up one key whose row is odd; the engine's error then names the reason.
func (d *Datastore) askAlone(ctx context.Context, l *lookup) error {
	c, err := d.watch(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	l.size, l.found, err = d.eng.getSize(c.opts, l.key)
	return contextual(ctx, err)
}

// Put stores value under key, and returns when it is on Walrus and indexed, or with journalPath in
// the journal on the local disk. value may be reused when Put has returned.
func (d *Datastore) Put(ctx context.Context, key ds.Key, value []byte) error {
	return d.write(ctx, []op{{key: key.String(), value: value}})
}

// Delete removes key. Deleting an unknown key is no error.
func (d *Datastore) Delete(ctx context.Context, key ds.Key) error {
	return d.write(ctx, []op{{key: key.String(), delete: true}})
}

// Sync returns when every write acknowledged before it survives a crash of this machine.
func (d *Datastore) Sync(ctx context.Context, prefix ds.Key) (err error) {
	ctx, span := startSpan(ctx, "sync")
	if span != nil {
		defer func() { endSpan(span, err) }()
	}
	c, err := d.begin(ctx, d.syncs)
	if err != nil {
		return err
	}
	defer c.end()
	return contextual(ctx, d.eng.sync(c.opts, prefix.String()))
}

// DiskUsage returns the bytes stored under this datastore's table. They lie on Walrus, not on this
// machine; Kubo compares them with Datastore.StorageMax all the same.
func (d *Datastore) DiskUsage(ctx context.Context) (uint64, error) {
	c, err := d.begin(ctx, d.queries)
	if err != nil {
		return 0, err
	}
	defer c.end()
	n, err := d.eng.diskUsage(c.opts)
	if err != nil {
		return 0, contextual(ctx, err)
	}
	return n, nil
}

// CollectGarbage has nothing to do: Kubo calls it at the end of `ipfs repo gc`, when the blocks are
// deleted already. The bytes on Walrus are released when the storage bought for them ends.
func (d *Datastore) CollectGarbage(ctx context.Context) error {
	return d.usable(ctx)
}

// Metrics returns the engine's counters as a JSON document.
func (d *Datastore) Metrics() ([]byte, error) {
	return d.eng.metrics()
}

// OpenMetrics returns all metrics as OpenMetrics text. An open datastore gives them to Prometheus'
// default registry as well, and so to Kubo's /debug/metrics/prometheus.
func (d *Datastore) OpenMetrics() ([]byte, error) {
	return d.eng.openMetrics()
}

// Close waits for the calls that are under way, uploads what is in the journal for at most
// drainTimeoutSeconds, and releases all resources. What is left in the journal waits for the next
// open. Calls that come later, or still wait for their turn, get ErrClosed. A further Close does
// nothing and returns the result of the first.
func (d *Datastore) Close() error {
	d.once.Do(func() {
		runtime.SetFinalizer(d, nil)
		close(d.closing)
		metrics.remove(d.eng)
		// Closing may last until the journal is drained, and logs messages.
		d.err = d.eng.close()
		d.eng.logs.stop()
		spans.replay()
		d.queue.close()
		d.tokens.close()
	})
	return d.err
}
