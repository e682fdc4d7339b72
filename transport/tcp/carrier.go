package tcp

// Carrier returns what carries the connection now, "unix" or "tcp", or "" while no link is up.
func (c *Conn) Carrier() string {
	for i := range c.t.cfg.Streams {
		if l := c.links[i].Load(); l != nil && !l.dead.Load() {
			return l.carrier()
		}
	}
	return ""
}
