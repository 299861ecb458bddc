package walrusds

// The functions below pass structures by value, so that a call allocates nothing on the Go side.

/*
#cgo CFLAGS: -I${SRCDIR}/../include
#include <stdlib.h>
#include <string.h>
#include <walrusds.h>

// Go does not notice that a linked library has changed and would keep the old one. The build
// scripts write the library's hash here; as a part of this package it makes Go link anew.
#if defined(__has_include)
#if __has_include("walrusds_lib_hash.h")
#include "walrusds_lib_hash.h"
#endif
#endif
#ifndef WALRUSDS_LIB_HASH
#define WALRUSDS_LIB_HASH "unknown"
#endif

static const char *wds_lib_hash(void) { return WALRUSDS_LIB_HASH; }
static uint32_t wds_header_abi(void) { return WALRUSDS_ABI_VERSION; }

typedef struct {
	int32_t rc;
	bool found, done;
	uint64_t n;
	walrusds_buf buf;
	walrusds_value value;
	walrusds_page page;
	walrusds_error err;
} wds_result;

// What a call hands over beside its arguments, by value as well.
typedef struct {
	uint64_t cancel, timeout_ms;
	bool traced;
	walrusds_trace trace;
} wds_opts;

#define WDS_BEGIN wds_result r; memset(&r, 0, sizeof r); walrusds_call call = { o.cancel, o.timeout_ms, o.traced ? &o.trace : NULL }; (void)call

static wds_result wds_open(const uint8_t *config, size_t config_len, const uint8_t *repo, size_t repo_len, wds_opts o) {
	WDS_BEGIN;
	r.rc = walrusds_open(config, config_len, repo, repo_len, &call, &r.n, &r.err);
	return r;
}
static wds_result wds_get(uint64_t h, wds_opts o, const uint8_t *key, size_t key_len) {
	WDS_BEGIN;
	r.rc = walrusds_get(h, &call, key, key_len, &r.buf, &r.found, &r.err);
	return r;
}
static wds_result wds_get_value(uint64_t h, wds_opts o, const uint8_t *key, size_t key_len) {
	WDS_BEGIN;
	r.rc = walrusds_get_value(h, &call, key, key_len, &r.value, &r.found, &r.err);
	return r;
}
static wds_result wds_value_take(walrusds_value v, uint8_t *into, size_t into_len) {
	wds_result r; memset(&r, 0, sizeof r);
	r.rc = walrusds_value_take(&v, into, into_len, &r.err);
	return r;
}
static wds_result wds_get_start(uint64_t h, wds_opts o, const uint8_t *key, size_t key_len, uint64_t queue, uint64_t tag) {
	WDS_BEGIN;
	r.rc = walrusds_get_start(h, &call, key, key_len, queue, tag, &r.buf, &r.found, &r.done, &r.err);
	return r;
}
// The size, or a mark: no value, or not known.
enum { WDS_ABSENT = -1, WDS_UNKNOWN = -2 };
static int64_t wds_peek_size(uint64_t h, const uint8_t *key, size_t key_len) {
	uint64_t size;
	bool found, known;
	if (walrusds_peek_size(h, key, key_len, &size, &found, &known, NULL) != WALRUSDS_OK || !known) return WDS_UNKNOWN;
	return found ? (int64_t)size : WDS_ABSENT;
}
static wds_result wds_get_size(uint64_t h, wds_opts o, const uint8_t *key, size_t key_len) {
	WDS_BEGIN;
	r.rc = walrusds_get_size(h, &call, key, key_len, &r.n, &r.found, &r.err);
	return r;
}
static wds_result wds_get_sizes(uint64_t h, wds_opts o, walrusds_lookup *lookups, size_t n) {
	WDS_BEGIN;
	r.rc = walrusds_get_sizes(h, &call, lookups, n, &r.err);
	return r;
}
static wds_result wds_put(uint64_t h, wds_opts o, const uint8_t *key, size_t key_len, const uint8_t *value, size_t value_len) {
	WDS_BEGIN;
	r.rc = walrusds_put(h, &call, key, key_len, value, value_len, &r.err);
	return r;
}
static wds_result wds_delete(uint64_t h, wds_opts o, const uint8_t *key, size_t key_len) {
	WDS_BEGIN;
	r.rc = walrusds_delete(h, &call, key, key_len, &r.err);
	return r;
}
static wds_result wds_commit(uint64_t h, wds_opts o, const walrusds_op *ops, size_t n) {
	WDS_BEGIN;
	r.rc = walrusds_batch_commit(h, &call, ops, n, &r.err);
	return r;
}
static wds_result wds_commit_start(uint64_t h, wds_opts o, const walrusds_op *ops, size_t n, uint64_t queue, uint64_t tag) {
	WDS_BEGIN;
	r.rc = walrusds_batch_start(h, &call, ops, n, queue, tag, &r.done, &r.err);
	return r;
}
static wds_result wds_queue_new(void) {
	wds_result r; memset(&r, 0, sizeof r);
	r.rc = walrusds_queue_new(&r.n, &r.err);
	return r;
}
static wds_result wds_queue_next(uint64_t queue, walrusds_completion *out, size_t max) {
	wds_result r; memset(&r, 0, sizeof r);
	size_t n;
	r.rc = walrusds_queue_next(queue, NULL, out, max, &n, &r.err);
	r.n = n;
	return r;
}
static wds_result wds_sync(uint64_t h, wds_opts o, const uint8_t *prefix, size_t prefix_len) {
	WDS_BEGIN;
	r.rc = walrusds_sync(h, &call, prefix, prefix_len, &r.err);
	return r;
}
static wds_result wds_disk_usage(uint64_t h, wds_opts o) {
	WDS_BEGIN;
	r.rc = walrusds_disk_usage(h, &call, &r.n, &r.err);
	return r;
}
static wds_result wds_query_open(uint64_t h, wds_opts o, const uint8_t *prefix, size_t prefix_len, const walrusds_key_condition *conditions, size_t conditions_len, bool descending, bool keys_only, bool without_sizes, uint64_t offset, uint64_t limit) {
	WDS_BEGIN;
	walrusds_query_options q;
	memset(&q, 0, sizeof q);
	q.prefix = prefix;
	q.prefix_len = prefix_len;
	q.conditions = conditions;
	q.conditions_len = conditions_len;
	q.descending = descending;
	q.keys_only = keys_only;
	q.without_sizes = without_sizes;
	q.offset = offset;
	q.limit = limit;
	r.rc = walrusds_query_open(h, &call, &q, &r.n, &r.err);
	return r;
}
static wds_result wds_query_next(uint64_t q, wds_opts o) {
	WDS_BEGIN;
	r.rc = walrusds_query_next(q, &call, &r.page, &r.err);
	return r;
}
static wds_result wds_disk_spec(const uint8_t *config, size_t config_len) {
	wds_result r; memset(&r, 0, sizeof r);
	r.rc = walrusds_disk_spec(config, config_len, &r.buf, &r.err);
	return r;
}
static wds_result wds_config_keys(void) {
	wds_result r; memset(&r, 0, sizeof r);
	r.rc = walrusds_config_keys(&r.buf, &r.err);
	return r;
}
static wds_result wds_metrics(uint64_t h) {
	wds_result r; memset(&r, 0, sizeof r);
	r.rc = walrusds_metrics(h, &r.buf, &r.err);
	return r;
}
static wds_result wds_open_metrics(uint64_t h) {
	wds_result r; memset(&r, 0, sizeof r);
	r.rc = walrusds_open_metrics(h, &r.buf, &r.err);
	return r;
}
static wds_result wds_log_next(uint64_t h) {
	wds_result r; memset(&r, 0, sizeof r);
	r.rc = walrusds_log_next(h, &r.buf, &r.found, &r.err);
	return r;
}
static wds_result wds_spans(void) {
	wds_result r; memset(&r, 0, sizeof r);
	r.rc = walrusds_spans(&r.buf, &r.err);
	return r;
}
static wds_result wds_cancel_new(void) {
	wds_result r; memset(&r, 0, sizeof r);
	r.rc = walrusds_cancel_new(&r.n, &r.err);
	return r;
}
// By value as well: a pointer to Go memory would move that memory to the heap at every call.
static void wds_buf_free(walrusds_buf b) { walrusds_buf_free(&b); }
static void wds_page_free(walrusds_page p) { walrusds_page_free(&p); }
static void wds_error_free(walrusds_error e) { walrusds_error_free(&e); }
static wds_result wds_close(uint64_t h) {
	wds_result r; memset(&r, 0, sizeof r);
	r.rc = walrusds_close(h, &r.err);
	return r;
}
*/
import "C"

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"go.opentelemetry.io/otel/trace"
)

type (
	queryID     uint64
	queueID     uint64
	cancelToken uint64
)

// callOptions holds the contents of a walrusds_call: how the call may end before it is done.
type callOptions struct {
	token     cancelToken
	timeoutMS uint64
	trace     trace.SpanContext // of the call's span; not valid where it has none
}

func (o callOptions) c() C.wds_opts {
	opts := C.wds_opts{cancel: C.uint64_t(o.token), timeout_ms: C.uint64_t(o.timeoutMS)}
	if o.trace.IsValid() {
		opts.traced = true
		traceID, spanID := o.trace.TraceID(), o.trace.SpanID()
		for i, b := range traceID {
			opts.trace.trace_id[i] = C.uint8_t(b)
		}
		for i, b := range spanID {
			opts.trace.span_id[i] = C.uint8_t(b)
		}
	}
	return opts
}

// engineSpans takes the spans that have ended inside the engine: a JSON array.
func engineSpans() ([]byte, error) {
	r := C.wds_spans()
	if err := result(&r); err != nil {
		return nil, err
	}
	return take(r.buf), nil
}

type queryOptions struct {
	prefix        string
	conditions    []keyCondition
	descending    bool
	keysOnly      bool
	withoutSizes  bool
	offset, limit uint64
}

type conditionKind uint32

const (
	conditionEqual          conditionKind = C.WALRUSDS_KEY_EQUAL
	conditionNotEqual       conditionKind = C.WALRUSDS_KEY_NOT_EQUAL
	conditionLess           conditionKind = C.WALRUSDS_KEY_LESS
	conditionLessOrEqual    conditionKind = C.WALRUSDS_KEY_LESS_OR_EQUAL
	conditionGreater        conditionKind = C.WALRUSDS_KEY_GREATER
	conditionGreaterOrEqual conditionKind = C.WALRUSDS_KEY_GREATER_OR_EQUAL
	conditionStartsWith     conditionKind = C.WALRUSDS_KEY_STARTS_WITH
)

// keyCondition is one condition on the keys of a query.
type keyCondition struct {
	kind conditionKind
	text string
}

// engine is an open handle. Handles are numbers that the engine checks, so that a call on a closed
// one returns an error and has no other effect.
type engine struct {
	h    C.uint64_t
	logs logPump
}

// checkABI compares the library with the header this package was compiled against. Every other
// function of the library may have changed its shape in between.
var checkABI = sync.OnceValue(func() error {
	lib, header := uint32(C.walrusds_abi_version()), uint32(C.wds_header_abi())
	if lib != header {
		return &Error{Code: CodeUnsupported, Message: fmt.Sprintf(
			"the engine library speaks ABI version %d, this build needs %d: install the libwalrusds that belongs to walrusds %s",
			lib, header, Version)}
	}
	return nil
})

// LibraryHash identifies the engine library this package was linked with.
func LibraryHash() string { return C.GoString(C.wds_lib_hash()) }

// result turns the outcome of a call into an error, and frees the engine's one.
func result(r *C.wds_result) error {
	if r.rc == 0 {
		return nil
	}
	return engineError(&r.err)
}

func engineError(e *C.walrusds_error) *Error {
	err := &Error{Code: Code(e.code), Retryable: bool(e.retryable), Message: string(view(e.message))}
	C.wds_error_free(*e)
	return err
}

// view looks at the engine's memory without copying it.
func view(b C.walrusds_buf) []byte {
	if b.data == nil || b.len == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(b.data)), int(b.len))
}

// take copies the engine's memory, once, and frees it. The result is never nil. (append, unlike
// make and copy, does not clear the memory first; C.GoBytes ends at 2 GiB.)
func take(b C.walrusds_buf) []byte {
	out := append([]byte{}, view(b)...)
	C.wds_buf_free(b)
	return out
}

// cstr and cbytes lend Go memory to a call; cgo keeps it in place for as long as that lasts.
func cstr(s string) (*C.uint8_t, C.size_t) {
	if s == "" {
		return nil, 0
	}
	return (*C.uint8_t)(unsafe.StringData(s)), C.size_t(len(s))
}

func cbytes(b []byte) (*C.uint8_t, C.size_t) {
	if len(b) == 0 {
		return nil, 0
	}
	return (*C.uint8_t)(unsafe.SliceData(b)), C.size_t(len(b))
}

func openEngine(config []byte, repoPath string) (*engine, error) {
	if err := checkABI(); err != nil {
		return nil, err
	}
	p, n := cbytes(config)
	rp, rn := cstr(repoPath)
	r := C.wds_open(p, n, rp, rn, C.wds_opts{})
	if err := result(&r); err != nil {
		return nil, err
	}
	return &engine{h: r.n}, nil
}

func engineDiskSpec(config []byte) ([]byte, error) {
	if err := checkABI(); err != nil {
		return nil, err
	}
	p, n := cbytes(config)
	r := C.wds_disk_spec(p, n)
	if err := result(&r); err != nil {
		return nil, err
	}
	return take(r.buf), nil
}

func engineConfigKeys() ([]byte, error) {
	if err := checkABI(); err != nil {
		return nil, err
	}
	r := C.wds_config_keys()
	if err := result(&r); err != nil {
		return nil, err
	}
	return take(r.buf), nil
}

func newCancelToken() (cancelToken, error) {
	r := C.wds_cancel_new()
	return cancelToken(r.n), result(&r)
}

func (t cancelToken) cancel() { C.walrusds_cancel(C.uint64_t(t), nil) }
func (t cancelToken) free()   { C.walrusds_cancel_free(C.uint64_t(t), nil) }

// engineBuf is memory of the engine that this side must free.
type engineBuf C.walrusds_buf

// take copies the memory, once, and frees it. The result is never nil.
func (b engineBuf) take() []byte { return take(C.walrusds_buf(b)) }

func (b engineBuf) free() {
	if b.owner != nil {
		C.wds_buf_free(C.walrusds_buf(b))
	}
}

// get reads the value of a key into Go's memory. The engine reads a value that lies in a local file
// straight into it.
func (e *engine) get(o callOptions, key string) (value []byte, found bool, err error) {
	opts := o.c()
	k, n := cstr(key)
	r := C.wds_get_value(e.h, opts, k, n)
	if err := result(&r); err != nil || !r.found {
		return nil, false, err
	}
	value = make([]byte, int(r.value.len))
	into, length := cbytes(value)
	if taken := C.wds_value_take(r.value, into, length); result(&taken) == nil {
		return value, true, nil
	}
	// The file is damaged there. This looks for another copy, and tells if there is none.
	r = C.wds_get(e.h, opts, k, n)
	if err := result(&r); err != nil || !r.found {
		return nil, false, err
	}
	return take(r.buf), true, nil
}

// getStart begins a get. Unless it is done or fails at once, its end comes through the queue.
func (e *engine) getStart(o callOptions, key string, q queueID, tag uint64) (c completion, done bool, err error) {
	opts := o.c()
	k, n := cstr(key)
	r := C.wds_get_start(e.h, opts, k, n, C.uint64_t(q), C.uint64_t(tag))
	return completion{value: engineBuf(r.buf), found: bool(r.found)}, bool(r.done), result(&r)
}

// peekSize answers from the engine's memory. It reports an error as unknown; the full call that
// follows returns it.
func (e *engine) peekSize(key string) (size uint64, found, known bool) {
	k, n := cstr(key)
	switch size := C.wds_peek_size(e.h, k, n); size {
	case C.WDS_UNKNOWN:
		return 0, false, false
	case C.WDS_ABSENT:
		return 0, false, true
	default:
		return uint64(size), true, true
	}
}

// getSizes answers a batch of lookups. The array and the keys are copied into C memory.
func (e *engine) getSizes(o callOptions, batch []*lookup) error {
	size := uintptr(len(batch)) * unsafe.Sizeof(C.walrusds_lookup{})
	total := size
	for _, l := range batch {
		total += uintptr(len(l.key))
	}
	mem := C.calloc(1, C.size_t(total)) // never nil: cgo aborts when memory is out
	defer C.free(mem)
	lookups := unsafe.Slice((*C.walrusds_lookup)(mem), len(batch))
	keys := unsafe.Slice((*byte)(mem), int(total))[size:]
	for i, l := range batch {
		if n := copy(keys, l.key); n > 0 {
			lookups[i].key, lookups[i].key_len = (*C.uint8_t)(unsafe.Pointer(&keys[0])), C.size_t(n)
			keys = keys[n:]
		}
	}
	opts := o.c()
	r := C.wds_get_sizes(e.h, opts, (*C.walrusds_lookup)(mem), C.size_t(len(batch)))
	if err := result(&r); err != nil {
		return err
	}
	for i, l := range batch {
		c := &lookups[i]
		l.size, l.found, l.alone = uint64(c.size), bool(c.found), c.code != 0
	}
	return nil
}

func newQueueID() (queueID, error) {
	r := C.wds_queue_new()
	return queueID(r.n), result(&r)
}

// receive delivers the ends of calls that were started on the queue, until it is closed.
func (id queueID) receive(deliver func(tag uint64, c completion)) {
	var out [64]C.walrusds_completion
	for {
		r := C.wds_queue_next(C.uint64_t(id), &out[0], C.size_t(len(out)))
		switch err := result(&r); {
		case errors.Is(err, ErrClosed):
			return
		case err != nil: // a defect; the waiting goroutines must get an answer all the same
			log.Errorf("waiting for the engine: %v", err)
			continue
		}
		for i := range out[:r.n] {
			o := &out[i]
			c := completion{value: engineBuf(o.value), found: bool(o.found)}
			if o.error.code != 0 {
				c.err = engineError(&o.error)
			}
			deliver(uint64(o.tag), c)
			*o = C.walrusds_completion{}
		}
	}
}

func (id queueID) close() { C.walrusds_queue_close(C.uint64_t(id), nil) }

func (e *engine) getSize(o callOptions, key string) (uint64, bool, error) {
	opts := o.c()
	k, n := cstr(key)
	r := C.wds_get_size(e.h, opts, k, n)
	return uint64(r.n), bool(r.found), result(&r)
}

func (e *engine) put(o callOptions, key string, value []byte) error {
	opts := o.c()
	k, n := cstr(key)
	v, vn := cbytes(value)
	r := C.wds_put(e.h, opts, k, n, v, vn)
	return result(&r)
}

func (e *engine) delete(o callOptions, key string) error {
	opts := o.c()
	k, n := cstr(key)
	r := C.wds_delete(e.h, opts, k, n)
	return result(&r)
}

func (e *engine) sync(o callOptions, prefix string) error {
	opts := o.c()
	p, n := cstr(prefix)
	r := C.wds_sync(e.h, opts, p, n)
	return result(&r)
}

func (e *engine) diskUsage(o callOptions) (uint64, error) {
	opts := o.c()
	r := C.wds_disk_usage(e.h, opts)
	return uint64(r.n), result(&r)
}

func (e *engine) metrics() ([]byte, error) {
	r := C.wds_metrics(e.h)
	if err := result(&r); err != nil {
		return nil, err
	}
	return take(r.buf), nil
}

func (e *engine) openMetrics() ([]byte, error) {
	r := C.wds_open_metrics(e.h)
	if err := result(&r); err != nil {
		return nil, err
	}
	return take(r.buf), nil
}

// commit hands all operations over in one call.
func (e *engine) commit(o callOptions, ops []op) error {
	lent, free := cops(ops)
	defer free()
	opts := o.c()
	r := C.wds_commit(e.h, opts, lent, C.size_t(len(ops)))
	return result(&r)
}

// commitStart begins a commit. Unless it is done or fails at once, its end comes through the queue.
func (e *engine) commitStart(o callOptions, ops []op, q queueID, tag uint64) (done bool, err error) {
	lent, free := cops(ops)
	defer free()
	opts := o.c()
	r := C.wds_commit_start(e.h, opts, lent, C.size_t(len(ops)), C.uint64_t(q), C.uint64_t(tag))
	return bool(r.done), result(&r)
}

// cops lends operations to a call. The array and the keys (some 60 bytes each) are copied into C
// memory; the values stay where they are, pinned, as C memory may point to Go memory only when that
// is pinned.
func cops(ops []op) (*C.walrusds_op, func()) {
	size := uintptr(len(ops)) * unsafe.Sizeof(C.walrusds_op{})
	total := size
	for i := range ops {
		total += uintptr(len(ops[i].key))
	}
	mem := C.calloc(1, C.size_t(total)) // never nil: cgo aborts when memory is out
	cops := unsafe.Slice((*C.walrusds_op)(mem), len(ops))
	keys := unsafe.Slice((*byte)(mem), int(total))[size:]

	pin := new(runtime.Pinner)
	for i := range ops {
		c, o := &cops[i], &ops[i]
		if n := copy(keys, o.key); n > 0 {
			c.key, c.key_len = (*C.uint8_t)(unsafe.Pointer(&keys[0])), C.size_t(n)
			keys = keys[n:]
		}
		if o.delete {
			c.kind = C.WALRUSDS_OP_DELETE
			continue
		}
		c.kind = C.WALRUSDS_OP_PUT
		if len(o.value) > 0 {
			data := unsafe.SliceData(o.value)
			pin.Pin(data)
			c.value, c.value_len = (*C.uint8_t)(data), C.size_t(len(o.value))
		}
	}
	return (*C.walrusds_op)(mem), func() {
		pin.Unpin()
		C.free(mem)
	}
}

func (e *engine) queryOpen(o callOptions, q queryOptions) (queryID, error) {
	opts := o.c()
	p, n := cstr(q.prefix)
	conditions, free := cconditions(q.conditions)
	defer free()
	r := C.wds_query_open(e.h, opts, p, n, conditions, C.size_t(len(q.conditions)), C.bool(q.descending),
		C.bool(q.keysOnly), C.bool(q.withoutSizes), C.uint64_t(q.offset), C.uint64_t(q.limit))
	return queryID(r.n), result(&r)
}

// cconditions copies the conditions of a query into C memory, texts and all, in one piece.
func cconditions(conditions []keyCondition) (*C.walrusds_key_condition, func()) {
	if len(conditions) == 0 {
		return nil, func() {}
	}
	size := uintptr(len(conditions)) * unsafe.Sizeof(C.walrusds_key_condition{})
	total := size
	for _, c := range conditions {
		total += uintptr(len(c.text))
	}
	mem := C.calloc(1, C.size_t(total)) // never nil: cgo aborts when memory is out
	out := unsafe.Slice((*C.walrusds_key_condition)(mem), len(conditions))
	texts := unsafe.Slice((*byte)(mem), int(total))[size:]
	for i, c := range conditions {
		out[i].kind = C.uint32_t(c.kind)
		if n := copy(texts, c.text); n > 0 {
			out[i].text, out[i].text_len = (*C.uint8_t)(unsafe.Pointer(&texts[0])), C.size_t(n)
			texts = texts[n:]
		}
	}
	return (*C.walrusds_key_condition)(mem), func() { C.free(mem) }
}

// queryNext appends the next page to into, copied into Go memory, and frees it. No entries: the
// end.
func (e *engine) queryNext(o callOptions, id queryID, keysOnly bool, into []entry) ([]entry, error) {
	opts := o.c()
	r := C.wds_query_next(C.uint64_t(id), opts)
	if err := result(&r); err != nil {
		return into, err
	}
	defer C.wds_page_free(r.page)
	if r.page.len == 0 {
		return into, nil
	}
	for _, c := range unsafe.Slice(r.page.entries, int(r.page.len)) {
		out := entry{size: uint64(c.size), expiresAt: int64(c.expires_at)}
		if c.key_len > 0 {
			out.key = string(unsafe.Slice((*byte)(c.key), int(c.key_len)))
		}
		switch {
		case c.code != 0:
			e := &Error{Code: Code(c.code)}
			if c.message_len > 0 {
				e.Message = string(unsafe.Slice((*byte)(c.message), int(c.message_len)))
			}
			out.err = fmt.Errorf("%w (key %q)", e, out.key)
		case keysOnly:
		case c.value_len > 0:
			out.value = append([]byte{}, unsafe.Slice((*byte)(c.value), int(c.value_len))...)
		default:
			out.value = []byte{}
		}
		into = append(into, out)
	}
	return into, nil
}

func (e *engine) queryClose(id queryID) { C.walrusds_query_close(C.uint64_t(id), nil) }

// drainLogs passes on every message the engine has kept so far.
func (e *engine) drainLogs() {
	for {
		r := C.wds_log_next(e.h)
		if result(&r) != nil || !r.found {
			return
		}
		e.logs.emit(view(r.buf))
		C.wds_buf_free(r.buf)
	}
}

// close is called once. The engine offers the messages of the closing until all were fetched.
func (e *engine) close() error {
	e.drainLogs()
	r := C.wds_close(e.h)
	e.drainLogs()
	return result(&r)
}
