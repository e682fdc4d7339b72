package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"rfs/internal/metrics"
)

// startHTTP serves /metrics, /healthz and /debug/pprof.
func (d *Daemon) startHTTP() error {
	if d.cfg.HTTP.Listen == "" {
		return nil
	}
	l, err := net.Listen("tcp", d.cfg.HTTP.Listen)
	if err != nil {
		return fmt.Errorf("http.listen %s: %w: choose another port, or \"\" for none", d.cfg.HTTP.Listen, err)
	}
	d.webAddr = l.Addr()
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics.Handler())
	mux.HandleFunc("GET /healthz", d.serveHealth)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	d.web = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	d.wg.Go(func() {
		if err := d.web.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.fail(fmt.Errorf("http.listen %v: %w", l.Addr(), err))
		}
	})
	return nil
}

// serveHealth answers "ok", or 503 and what is wrong, one a line.
func (d *Daemon) serveHealth(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	wrong := d.Health(ctx)
	if len(wrong) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, strings.Join(wrong, "\n"))
		return
	}
	fmt.Fprintln(w, "ok")
}
