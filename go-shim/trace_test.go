package walrusds

import (
	"context"
	"slices"
	"sync"
	"testing"

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
	parent     *recorded
	attributes []attribute.KeyValue
	status     codes.Code
}

func (r *recorder) Tracer(name string, _ ...trace.TracerOption) trace.Tracer {
	return recorderTracer{to: r, scope: name}
}

func (r recorderTracer) Start(ctx context.Context, name string, _ ...trace.SpanStartOption) (context.Context, trace.Span) {
	parent, _ := trace.SpanFromContext(ctx).(*recorded)
	span := &recorded{to: r.to, name: r.scope + ": " + name, parent: parent}
	return trace.ContextWithSpan(ctx, span), span
}

func (s *recorded) IsRecording() bool                    { return true }
func (s *recorded) TracerProvider() trace.TracerProvider { return s.to }
func (s *recorded) SetAttributes(some ...attribute.KeyValue) {
	s.attributes = append(s.attributes, some...)
}
func (s *recorded) SetStatus(code codes.Code, _ string) { s.status = code }
func (s *recorded) End(...trace.SpanEndOption) {
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
	for _, span := range r.ended {
		names = append(names, span.name)
		if trace.Span(span.parent) != root {
			t.Errorf("%s is no part of the trace", span.name)
		}
	}
	want := []string{"put", "commit", "get", "get", "lookup", "delete", "sync", "put"}
	for i := range want {
		want[i] = "walrusds: walrusds." + want[i]
	}
	if !slices.Equal(names, want) {
		t.Fatalf("spans %q, want %q", names, want)
	}
	for i, status := range []codes.Code{7: codes.Error} {
		if r.ended[i].status != status {
			t.Errorf("%s ended with %v", names[i], r.ended[i].status)
		}
	}
	if !slices.Contains(r.ended[2].attributes, bytesOf(1)) || !slices.Contains(r.ended[2].attributes, keyOf("/b")) {
		t.Errorf("a get tells %v", r.ended[2].attributes)
	}
	// Without a trace to join there are no spans.
	must(t, d.Put(context.Background(), key("/c"), nil))
	if len(r.ended) != len(want) {
		t.Errorf("%d spans more", len(r.ended)-len(want))
	}
}
