package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// A fleet is processes that serve the same host, behind a balancer that stands
// where Pebble validates and clients come.
type fleet struct {
	*demo
	listeners []net.Listener // the balancer's
	obtained  chan int       // has the number of the first member that obtained a certificate
	started   int            // how many members were, ever

	mu      sync.Mutex // guards members
	members []*member  // those that clients are sent to
}

// fleetSize is how many members there are.
const fleetSize = 3

// runFleet runs a fleet.
func (d *demo) runFleet(ctx context.Context, once bool) error {
	f := &fleet{demo: d, obtained: make(chan int, 1)}
	defer f.stop()
	if err := f.start(); err != nil {
		return err
	}
	if once {
		return f.visit(ctx)
	}
	leaf, err := f.ask(ctx)
	if err != nil {
		return err
	}
	f.describe(ctx, leaf)
	fmt.Fprintln(d.out, serving)
	<-ctx.Done()
	return nil
}

// folder is what the members share.
func (f *fleet) folder() string { return filepath.Join(f.dir, "fleet") }

// start starts the members and the balancer.
func (f *fleet) start() error {
	if err := os.MkdirAll(f.folder(), 0o700); err != nil {
		return err
	}
	for range fleetSize {
		if err := f.add(); err != nil {
			return err
		}
	}
	if err := f.balance(f.httpAddr(), func(m *member) string { return m.httpAddr }); err != nil {
		return err
	}
	return f.balance(f.httpsAddr(), func(m *member) string { return m.httpsAddr })
}

// add starts another member.
func (f *fleet) add() error {
	f.started++
	m, err := startMember(job{
		Member:    f.started,
		Folder:    f.folder(),
		Directory: f.ca.Directory(),
		Trusted:   f.ca.APICert(),
		HTTPAddr:  f.httpAddr(),
		HTTPSAddr: f.httpsAddr(),
	}, f.obtained)
	if err != nil {
		return fmt.Errorf("member %d: %w", f.started, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.members = append(f.members, m)
	return nil
}

// crash kills the member that was started first.
func (f *fleet) crash() {
	f.mu.Lock()
	m := f.members[0]
	f.members = f.members[1:]
	f.mu.Unlock()
	m.kill()
}

func (f *fleet) all() []*member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.members)
}

// stop ends the balancer and the members.
func (f *fleet) stop() {
	for _, ln := range f.listeners {
		ln.Close()
	}
	var wg sync.WaitGroup
	for _, m := range f.all() {
		wg.Go(m.stop)
	}
	wg.Wait()
}

// balance takes connections at addr and passes each on to any member.
func (f *fleet) balance(addr string, to func(*member) string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	f.listeners = append(f.listeners, ln)
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			go f.pass(client, to)
		}
	}()
	return nil
}

// pass passes a connection on to the first member at random that takes it.
func (f *fleet) pass(client net.Conn, to func(*member) string) {
	defer client.Close()
	members := f.all()
	for _, i := range rand.Perm(len(members)) {
		server, err := net.Dial("tcp", to(members[i]))
		if err != nil {
			continue
		}
		defer server.Close()
		go func() {
			io.Copy(server, client)
			server.(*net.TCPConn).CloseWrite()
		}()
		io.Copy(client, server)
		return
	}
}

// ask asks every member for the host at the same moment, and returns the
// certificate that all of them serve.
func (f *fleet) ask(ctx context.Context) (*x509.Certificate, error) {
	members := f.all()
	leaves := make([]*x509.Certificate, len(members))
	errs := make([]error, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() { leaves[i], errs[i] = f.visitHTTPS(ctx, m.httpsAddr) })
	}
	wg.Wait()
	for i, m := range members {
		if errs[i] == nil && errs[0] == nil && !leaves[i].Equal(leaves[0]) {
			errs[i] = fmt.Errorf("it serves another certificate than member %d", members[0].number)
		}
		if errs[i] != nil {
			errs[i] = fmt.Errorf("member %d: %w", m.number, errs[i])
		}
	}
	return leaves[0], errors.Join(errs...)
}

// describe prints what happened, and what can be done now.
func (f *fleet) describe(ctx context.Context, leaf *x509.Certificate) {
	f.line("CA", "%s", f.ca.Directory())
	for _, m := range f.all() {
		f.line(fmt.Sprintf("member %d", m.number), "process %d at %s", m.cmd.Process.Pid, m.httpsAddr)
	}
	if issued := len(f.ca.Issued()); issued > 0 {
		select {
		case n := <-f.obtained:
			f.line("ordered by", "member %d, when all were asked at once", n)
		case <-ctx.Done():
		}
		f.line("Pebble counts", "orders: %d, certificates: %d", f.ca.Orders(), issued)
		f.line("certificate", "%x, obtained, and served by all", leaf.SerialNumber)
	} else {
		f.line("certificate", "%x, kept since an earlier start, and served by all; no order was made", leaf.SerialNumber)
	}
	f.line("expiry", "%s", leaf.NotAfter.UTC().Format(time.RFC1123))
	f.line("folder", "%s", f.folder())
	f.invite()
	fmt.Fprintln(f.out, "\nEach visit goes to one of them at random. Kill one, and the others serve on.")
}

// visit does with a fleet what demo.visit does with one server.
func (f *fleet) visit(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, visitTimeout)
	defer cancel()
	v := &verdict{out: f.out}
	fmt.Fprintln(f.out)
	first, err := f.ask(ctx)
	v.check("all members, asked at once, serve one certificate, and its chain leads to Pebble's root", err)
	orders, issued := f.ca.Orders(), len(f.ca.Issued())
	if err == nil && issued == 0 {
		v.check("Pebble counts no order: the certificate was kept", same(orders, 0))
	} else {
		v.check("Pebble counts one order and one certificate", same(max(orders, issued), 1))
	}

	v.check("HTTPS serves it through the balancer", f.serves(ctx, f.httpsAddr(), first))
	v.check("HTTP redirects to HTTPS", f.visitHTTP(ctx))

	f.crash()
	err = f.add()
	var again *x509.Certificate
	if err == nil {
		again, err = f.ask(ctx)
	}
	if err == nil && !again.Equal(first) {
		err = fmt.Errorf("it serves %x", again.SerialNumber)
	}
	v.check("one is killed, and a fourth serves the same certificate", err)
	v.check("Pebble counts no further order for it", same(f.ca.Orders(), orders))
	return v.err()
}
