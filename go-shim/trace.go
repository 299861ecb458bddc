package walrusds

import (
	"context"

	ds "github.com/ipfs/go-datastore"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// scope is the name under which the spans appear.
const scope = "walrusds"

// startSpan begins a span under that of the context. Where that does not record, there is none to
// join, and it costs one look into the context: the span is nil then.
//
// A span covers a call of the datastore. What the engine does by itself (flushing the journal,
// uploads in the background) belongs to no call, and its parts have no spans: the histograms tell
// their times.
func startSpan(ctx context.Context, name string) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, nil
	}
	return parent.TracerProvider().Tracer(scope).Start(ctx, scope+"."+name)
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
