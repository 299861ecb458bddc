package walrusds

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/embedded"
	"go.opentelemetry.io/otel/trace/noop"
)

// recorder is a provider of spans, as Kubo's is when tracing is on.
type recorder struct {
	embedded.TracerProvider
	mu    sync.Mutex
	ended []*recorded
}

type recorderTracer struct {
	embedded.Tracer
	to    *recorder
	scope string
}

type recorded struct {
	noop.Span
	to         *recorder
	name       string
	ids        trace.SpanContext
	parent     trace.SpanContext
	begun, end time.Time
	attributes []attribute.KeyValue
	status     codes.Code
}

func (r *recorder) Tracer(name string, _ ...trace.TracerOption) trace.Tracer {
	return recorderTracer{to: r, scope: name}
}

func (r recorderTracer) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	config := trace.NewSpanStartConfig(options...)
	span := &recorded{
		to: r.to, name: r.scope + ": " + name, parent: trace.SpanContextFromContext(ctx),
		begun: config.Timestamp(),
	}
	if span.begun.IsZero() {
		span.begun = time.Now()
	}
	ids := trace.SpanContextConfig{TraceID: span.parent.TraceID(), TraceFlags: trace.FlagsSampled}
	if !ids.TraceID.IsValid() {
		rand.Read(ids.TraceID[:])
	}
	rand.Read(ids.SpanID[:])
	span.ids = trace.NewSpanContext(ids)
	return trace.ContextWithSpan(ctx, span), span
}

// under returns the ended spans whose parent this is, in the order of their ends.
func (r *recorder) under(parent trace.Span) []*recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	var under []*recorded
	for _, span := range r.ended {
		ids := parent.SpanContext()
		if span.parent.SpanID() == ids.SpanID() && span.parent.TraceID() == ids.TraceID() {
			under = append(under, span)
		}
	}
	return under
}

// short is the name without the scope.
func (s *recorded) short() string { return strings.TrimPrefix(s.name, "walrusds: walrusds.") }

func (s *recorded) IsRecording() bool                    { return true }
func (s *recorded) SpanContext() trace.SpanContext       { return s.ids }
func (s *recorded) TracerProvider() trace.TracerProvider { return s.to }
func (s *recorded) SetAttributes(some ...attribute.KeyValue) {
	s.attributes = append(s.attributes, some...)
}
func (s *recorded) SetStatus(code codes.Code, _ string) { s.status = code }
func (s *recorded) End(options ...trace.SpanEndOption) {
	config := trace.NewSpanEndConfig(options...)
	if s.end = config.Timestamp(); s.end.IsZero() {
		s.end = time.Now()
	}
	s.to.mu.Lock()
	defer s.to.mu.Unlock()
	s.to.ended = append(s.to.ended, s)
}

func TestSpansJoinTheCallersTrace(t *testing.T) {
	d := open(t)
	r := &recorder{}
	ctx, root := r.Tracer("kubo").Start(context.Background(), "root")
	must(t, d.Put(ctx, key("/a"), []byte("abc")))
	b, err := d.Batch(ctx)
	must(t, err)
	must(t, b.Put(ctx, key("/b"), []byte("x")))
	must(t, b.Delete(ctx, key("/a")))
	must(t, b.Commit(ctx))
	_, err = d.Get(ctx, key("/b"))
	must(t, err)
	if _, err = d.Get(ctx, key("/nothing")); err == nil {
		t.Fatal("found nothing")
	}
	_, err = d.Has(ctx, key("/unseen"))
	must(t, err)
	must(t, d.Delete(ctx, key("/b")))
	must(t, d.Sync(ctx, key("/")))
	if err := d.Put(ctx, key("/a\x00b"), nil); err == nil {
		t.Fatal("a key with a NUL was taken")
	}
	var names []string
	own := r.under(root)
	for _, span := range own {
		names = append(names, span.name)
	}
	want := []string{"put", "commit", "get", "get", "lookup", "delete", "sync", "put"}
	for i := range want {
		want[i] = "walrusds: walrusds." + want[i]
	}
	if !slices.Equal(names, want) {
		t.Fatalf("spans %q, want %q", names, want)
	}
	for i, status := range []codes.Code{7: codes.Error} {
		if own[i].status != status {
			t.Errorf("%s ended with %v", names[i], own[i].status)
		}
	}
	if !slices.Contains(own[2].attributes, bytesOf(1)) || !slices.Contains(own[2].attributes, keyOf("/b")) {
		t.Errorf("a get tells %v", own[2].attributes)
	}
	// Without a trace to join there are no spans.
	must(t, d.Put(context.Background(), key("/c"), nil))
	if now := r.under(root); len(now) != len(want) {
		t.Errorf("%d spans more", len(now)-len(want))
	}
}

func openIn(t *testing.T, settings map[string]any, dir string) *Datastore {
	t.Helper()
	d, err := Open(settings, dir)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// namesOf returns the names of spans, each once.
func namesOf(spans []*recorded) map[string]*recorded {
	names := map[string]*recorded{}
	for _, span := range spans {
		names[span.short()] = span
	}
	return names
}

// The parts of a call are children of its span, at their own times.
func TestPartsOfCallsAreSpansOfTheirCalls(t *testing.T) {
	settings, dir := spec(t), t.TempDir()
	d := openIn(t, settings, dir)
	r := &recorder{}
	ctx, root := r.Tracer("kubo").Start(context.Background(), "root")
	value := bytes.Repeat([]byte{7}, 100_000)
	must(t, d.Put(ctx, key("/traced"), value))
	must(t, d.Close())
	d = openIn(t, settings, dir) // remembers nothing
	_, err := d.Get(ctx, key("/traced"))
	must(t, err)
	_, err = d.Has(ctx, key("/untraced"))
	must(t, err)
	// The span of a window that is fetched ahead may end after its call.
	must(t, d.Close())
	calls := namesOf(r.under(root))
	for _, want := range []struct {
		call  string
		parts []string
	}{
		{"put", []string{"upload", "upload_attempt", "index_write"}},
		{"get", []string{"index_query", "read_attempt"}},
		{"lookup", []string{"index_query"}},
	} {
		call := calls[want.call]
		parts := namesOf(r.under(call))
		for _, name := range want.parts {
			part := parts[name]
			if part == nil {
				t.Errorf("%s has no %s, but %v", want.call, name, parts)
				continue
			}
			// Two clocks, of which one may be set meanwhile: a second is no error.
			if part.begun.Before(call.begun.Add(-time.Second)) || part.end.After(call.end.Add(time.Second)) || part.end.Before(part.begun) {
				t.Errorf("%s took from %v to %v, its call from %v to %v", name, part.begun, part.end, call.begun, call.end)
			}
			if part.status != codes.Unset {
				t.Errorf("%s failed", name)
			}
		}
	}
	attempt := namesOf(r.under(calls["put"]))["upload_attempt"]
	host := attribute.String("walrusds.host", strings.TrimPrefix(walrusURL, "http://"))
	if attempt == nil || !slices.Contains(attempt.attributes, host) {
		t.Errorf("an attempt does not tell its host: %v", attempt)
	}
}

// What fails inside a call is told by its part.
func TestAFailedPartTellsWhy(t *testing.T) {
	settings := spec(t)
	settings["publisherURL"], settings["maxRetries"] = "http://127.0.0.1:9", 0
	d := openIn(t, settings, t.TempDir())
	r := &recorder{}
	ctx, root := r.Tracer("kubo").Start(context.Background(), "root")
	if err := d.Put(ctx, key("/a"), []byte("abc")); err == nil {
		t.Fatal("stored without a publisher")
	}
	parts := namesOf(r.under(namesOf(r.under(root))["put"]))
	if attempt := parts["upload_attempt"]; attempt == nil || attempt.status != codes.Error {
		t.Errorf("the failed attempt is not told: %v", parts)
	}
}

// The journal's uploads belong to no call: each is a trace of its own.
func TestFlushesAreTracesOfTheirOwn(t *testing.T) {
	settings := spec(t)
	settings["journalPath"] = "journal"
	d := openIn(t, settings, t.TempDir())
	r := &recorder{}
	ctx, root := r.Tracer("kubo").Start(context.Background(), "root")
	must(t, d.Put(ctx, key("/a"), []byte("abc")))
	must(t, d.Close()) // empties the journal
	put := namesOf(r.under(namesOf(r.under(root))["put"]))
	if put["journal_write"] == nil || put["upload"] != nil {
		t.Errorf("a put into the journal has %v", put)
	}
	r.mu.Lock()
	var flush *recorded
	for _, span := range r.ended {
		if span.short() == "flush" {
			flush = span
		}
	}
	r.mu.Unlock()
	if flush == nil {
		t.Fatal("the flush is no span")
	}
	if flush.parent.IsValid() {
		t.Error("the flush belongs to a call")
	}
	parts := namesOf(r.under(flush))
	for _, name := range []string{"upload", "upload_attempt", "index_write", "read_attempt"} {
		if parts[name] == nil {
			t.Errorf("a flush has no %s, but %v", name, parts)
		}
	}
}
