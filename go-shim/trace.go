package walrusds

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	ds "github.com/ipfs/go-datastore"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// scope is the name under which the spans appear.
const scope = "walrusds"

// startSpan begins a span under that of the context. Where that does not record, there is none to
// join, and it costs one look into the context: the span is nil then.
func startSpan(ctx context.Context, name string) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, nil
	}
	spans.to.Store(&provider{parent.TracerProvider()})
	return parent.TracerProvider().Tracer(scope).Start(ctx, scope+"."+name)
}

// joined is the span under which the engine's own spans of a call come: that of startSpan. It is
// not valid where nothing records.
func joined(ctx context.Context) trace.SpanContext {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		return span.SpanContext()
	}
	return trace.SpanContext{}
}

// endSpan ends a span with its outcome.
func endSpan(span trace.Span, err error, attributes ...attribute.KeyValue) {
	if span == nil {
		return
	}
	span.SetAttributes(attributes...)
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
	spans.replay()
}

// traced is the error as a span tells it: that a key is unknown is an answer.
func traced(err error) error {
	if err == ds.ErrNotFound {
		return nil
	}
	return err
}

func keyOf(key string) attribute.KeyValue { return attribute.String("walrusds.key", key) }
func bytesOf(n int) attribute.KeyValue    { return attribute.Int("walrusds.bytes", n) }
func opsOf(n int) attribute.KeyValue      { return attribute.Int("walrusds.operations", n) }

// operation names a write.
func operation(ops []op) string {
	switch {
	case len(ops) > 1:
		return "commit"
	case ops[0].delete:
		return "delete"
	default:
		return "put"
	}
}

// spans gives the engine's spans to the tracer of the process: the parts of calls (lookups, windows,
// attempts at endpoints, uploads), and what the journal does by itself, as traces of their own. The
// engine keeps them until they are asked for: at the end of a call that is traced, and with the
// engine's messages. Without traces no call asks for it.
var spans replayer

type replayer struct {
	to atomic.Pointer[provider] // of the call that was traced last
	mu sync.Mutex
}

// provider is a struct because an interface cannot be stored atomically by itself.
type provider struct{ trace.TracerProvider }

// engineSpan is a span that has ended inside the engine.
type engineSpan struct {
	Name       string         `json:"name"`
	TraceID    string         `json:"trace_id"` // empty: it belongs to no call
	SpanID     string         `json:"span_id"`
	BegunNS    int64          `json:"begun_ns"` // since 1970
	EndedNS    int64          `json:"ended_ns"`
	Error      *string        `json:"error"`
	Attributes map[string]any `json:"attributes"`
	Children   []engineSpan   `json:"children"`
}

// replay makes spans of those that have ended inside the engine.
func (r *replayer) replay() {
	to := r.to.Load()
	if to == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	raw, err := engineSpans()
	if err != nil {
		log.Warnf("the engine's spans cannot be fetched: %v", err)
		return
	}
	var ended []engineSpan
	if err := json.Unmarshal(raw, &ended); err != nil {
		log.Warnf("unreadable spans from the engine: %v", err)
		return
	}
	tracer := to.Tracer(scope)
	for i := range ended {
		ended[i].replay(context.Background(), tracer)
	}
}

// replay makes a span of it, as a child of the span of its call, or of the one in ctx.
func (s *engineSpan) replay(ctx context.Context, tracer trace.Tracer) {
	if s.TraceID != "" {
		traceID, err := trace.TraceIDFromHex(s.TraceID)
		if err != nil {
			return // not one that this side has handed over
		}
		spanID, err := trace.SpanIDFromHex(s.SpanID)
		if err != nil {
			return
		}
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: traceID, SpanID: spanID, TraceFlags: trace.FlagsSampled,
		}))
	}
	ctx, span := tracer.Start(ctx, scope+"."+s.Name, trace.WithTimestamp(time.Unix(0, s.BegunNS)))
	for key, value := range s.Attributes {
		switch value := value.(type) {
		case string:
			span.SetAttributes(attribute.String(scope+"."+key, value))
		case float64:
			span.SetAttributes(attribute.Int64(scope+"."+key, int64(value)))
		}
	}
	if s.Error != nil {
		span.SetStatus(codes.Error, *s.Error)
	}
	for i := range s.Children {
		s.Children[i].replay(ctx, tracer)
	}
	span.End(trace.WithTimestamp(time.Unix(0, s.EndedNS)))
}
