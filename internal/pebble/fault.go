package pebble

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
)

// A Fault decides what becomes of a request, the nth to its endpoint, counted
// from 1. Nil lets it pass. Many goroutines may call it at a time.
//
//	proxy.SetFault(func(r *http.Request, e pebble.Endpoint, n int) pebble.Reply {
//		if e == pebble.Finalize && n == 1 {
//			return pebble.LoseReply
//		}
//		return nil
//	})
type Fault func(r *http.Request, e Endpoint, n int) Reply

// A Reply answers a request in the CA's place. It may ask ca, which is Pebble.
type Reply func(w http.ResponseWriter, r *http.Request, ca http.Handler)

// An Answer is a reply of the CA's that was kept from the client.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Problem replies with a problem document. The type is the last part of an
// ACME error's URN, such as "rateLimited" (RFC 8555 section 6.7); an empty
// retryAfter is left out. There is no nonce in the reply.
func Problem(status int, typ, detail, retryAfter string) Reply {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		body, err := json.Marshal(map[string]any{
			"type":   "urn:ietf:params:acme:error:" + typ,
			"detail": detail,
			"status": status,
		})
		if err != nil {
			panic("pebble: internal error: " + err.Error())
		}
		w.Header().Set("Content-Type", "application/problem+json")
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.WriteHeader(status)
		w.Write(body)
	}
}

// HTML replies with a web page, as a load balancer or a captive portal does.
func HTML(status int) Reply {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(status)
		io.WriteString(w, "<html><body><h1>"+http.StatusText(status)+"</h1></body></html>\n")
	}
}

// Hang says nothing until the client has enough or the proxy is closed.
func Hang(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	// The server does not see that a client is gone before it has read the
	// request's body.
	io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

// Drop closes the connection; Pebble hears nothing. Note that Go's clients
// send a GET or HEAD again when that happens on a connection used before.
func Drop(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	io.Copy(io.Discard, r.Body)
	panic(http.ErrAbortHandler)
}

// LoseReply has Pebble do what it is asked, then closes the connection.
func LoseReply(_ http.ResponseWriter, r *http.Request, ca http.Handler) {
	ask(ca, r)
	panic(http.ErrAbortHandler)
}

// Truncate sends half of the body of Pebble's reply, then closes the
// connection.
func Truncate(w http.ResponseWriter, r *http.Request, ca http.Handler) {
	a := ask(ca, r)
	a.Body = a.Body[:len(a.Body)/2]
	a.send(w)
	http.NewResponseController(w).Flush() // the panic takes what was not sent
	panic(http.ErrAbortHandler)
}

// Edit sends Pebble's reply as f leaves it.
func Edit(f func(a *Answer)) Reply {
	return func(w http.ResponseWriter, r *http.Request, ca http.Handler) {
		a := ask(ca, r)
		a.Header.Del("Content-Length")
		f(a)
		a.send(w)
	}
}

func (a *Answer) send(w http.ResponseWriter) {
	for key, values := range a.Header {
		w.Header()[key] = values
	}
	w.WriteHeader(a.Status)
	w.Write(a.Body)
}

// ask returns the CA's reply to a request.
func ask(ca http.Handler, r *http.Request) *Answer {
	w := &keeper{header: http.Header{}}
	ca.ServeHTTP(w, r)
	return &Answer{w.status, w.header, w.body.Bytes()}
}

// A keeper keeps a reply.
type keeper struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *keeper) Header() http.Header         { return w.header }
func (w *keeper) Write(b []byte) (int, error) { return w.body.Write(b) }

func (w *keeper) WriteHeader(status int) {
	if status >= 200 {
		w.status = status
	}
}
