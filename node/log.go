package node

import (
	"context"
	"io"
	"log/slog"
	"strconv"

	"rfs/internal/config"
	"rfs/transport"
)

// NewLogger returns a log to w. Records of a request carry its trace id, which is
// the same on the client, the targets and the metadata service.
func NewLogger(w io.Writer, cfg config.Log) *slog.Logger {
	o := &slog.HandlerOptions{}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err == nil {
		o.Level = level
	}
	if cfg.Format == "json" {
		return slog.New(traced{slog.NewJSONHandler(w, o)})
	}
	return slog.New(traced{slog.NewTextHandler(w, o)})
}

// traced adds the trace id of a record's context.
type traced struct{ slog.Handler }

func (t traced) Handle(ctx context.Context, r slog.Record) error {
	if id := transport.TraceID(ctx); id != 0 {
		r.AddAttrs(slog.String("trace", strconv.FormatUint(id, 16)))
	}
	return t.Handler.Handle(ctx, r)
}

func (t traced) WithAttrs(as []slog.Attr) slog.Handler { return traced{t.Handler.WithAttrs(as)} }
func (t traced) WithGroup(name string) slog.Handler    { return traced{t.Handler.WithGroup(name)} }
