package letsencrypt

// In this file, from the top: the records that the state is made of; Marshal and
// Unmarshal; what the members of a fleet share; CacheFile; accounts; the order for a
// certificate and what comes of it; Status of a host; revocation; what
// rsc.io/letsencrypt wrote.

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/letsencrypt/internal/bucket"
	"example.com/letsencrypt/internal/ca"
	"example.com/letsencrypt/internal/certs"
	"example.com/letsencrypt/internal/hostname"
	"example.com/letsencrypt/internal/journal"
	"example.com/letsencrypt/internal/shared"
	"golang.org/x/crypto/acme"
)

// The kinds of records that the state is made of. The name of a record is the
// host, the CA's directory URL, the hash of the chain or, where there can be
// only one of a kind, onlyOne.
const (
	kindAccount  = "account"  // ca.Credentials, by directory URL
	kindBackoff  = "backoff"  // trouble, by host
	kindCert     = "cert"     // certRecord, by host; its fields are notBefore and notAfter in Unix seconds
	kindChain    = "chain"    // chainRecord, by hash
	kindHosts    = "hosts"    // the list, []string
	kindLimit    = "limit"    // bucket.Level, by the bucket's name
	kindMoment   = "ari"      // momentRecord, by host
	kindOrder    = "order"    // orderRecord, by host
	kindPause    = "pause"    // pause, by directory URL
	kindRegister = "register" // registration
	kindRevoked  = "revoked"  // revocation, by the leaf's hash
	kindStaple   = "staple"   // stapleRecord, by host or, for the program's own, the leaf's hash

	onlyOne = "-"

	kindChallenge = "challenge" // challenge.Pending, by host; in Storage only
)

// sharedKinds are those that go to Storage, a key each. A certificate goes with
// the chain above it.
var sharedKinds = map[string]bool{kindAccount: true, kindBackoff: true, kindCert: true, kindMoment: true, kindOrder: true,
	kindPause: true, kindRegister: true, kindRevoked: true, kindStaple: true}

// A registration is what Register was told, for every CA that is asked later.
type registration struct {
	Email    string `json:"email,omitempty"`
	Prompted bool   `json:"prompted,omitempty"` // there was a prompt for the terms of service
	Refused  bool   `json:"refused,omitempty"`  // they were not agreed to
}

type certRecord struct {
	Chain string `json:"chain"` // hash of the chainRecord
	Leaf  []byte `json:"leaf"`
	Key   []byte `json:"key"` // PKCS #8

	chainRecord // read from there; here only in what the first versions wrote
}

// A chainRecord is what most certificates have in common. There is one for all
// that came in the same way.
type chainRecord struct {
	Above     [][]byte `json:"above,omitempty"` // the certificates above the leaf
	CA        string   `json:"ca,omitempty"`
	Account   string   `json:"account,omitempty"`
	Profile   string   `json:"profile,omitempty"`
	Challenge string   `json:"challenge,omitempty"` // the type that was passed
	Stapled   bool     `json:"stapled,omitempty"`   // they name an OCSP responder

	old bool // the first versions had nothing here but Above
}

type orderRecord struct {
	CA      string `json:"ca"`
	Account string `json:"account"`
	URL     string `json:"url"`
	Key     []byte `json:"key"`  // the certificate's, PKCS #8
	Made    int64  `json:"made"` // Unix seconds
}

// A momentRecord is when to renew, chosen in a window that the CA suggested
// for the certificate with this identifier (RFC 9773, section 4.1).
type momentRecord struct {
	ID       string    `json:"id"`
	NotAfter int64     `json:"notAfter,omitempty"` // of the certificate, Unix seconds
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
	Moment   time.Time `json:"moment"`
	Next     time.Time `json:"next,omitzero"` // in a fleet: when the CA is next asked
}

// A revocation is of a certificate that the CA has revoked, or is to. It is kept
// as long as that would live, lest another process or an old blob bring it back.
type revocation struct {
	Host    string             `json:"host"`
	CA      string             `json:"ca,omitempty"`
	Account string             `json:"account,omitempty"`
	Reason  acme.CRLReasonCode `json:"reason"`
	Until   int64              `json:"until"`          // when it expires, Unix seconds
	Public  string             `json:"public"`         // hash of its public key
	Leaf    []byte             `json:"leaf,omitempty"` // these two until it is revoked
	Key     []byte             `json:"key,omitempty"`  // PKCS #8

	trying bool      // somebody sees to it
	next   time.Time // not before then does the Manager, of itself
}

func (r *revocation) pending() bool     { return r.Leaf != nil }
func (r *revocation) compromised() bool { return r.Reason == acme.CRLReasonKeyCompromise }

// waits reports whether the certificate is revoked when it was replaced only.
func (r *revocation) waits() bool {
	return r.pending() && !r.compromised() && r.Reason != acme.CRLReasonCessationOfOperation
}

type stapleRecord struct {
	Leaf     string `json:"leaf"`     // the hash of that it is about
	Until    int64  `json:"until"`    // when it is out of date, Unix seconds
	Response []byte `json:"response"` // OCSP, DER
}

// The state is all that Marshal writes, decoded, but for what is kept by host.
// Every change to it goes through putLocked.
type state struct {
	registration registration
	prompt       func(tosURL string) bool // Register's; not written
	accounts     map[string]ca.Credentials
	orders       map[string]orderRecord
	pauses       map[string]pause
	revocations  map[string]*revocation // by the leaf's hash
	revokedHosts map[string]bool        // whose they are, or were; not written
	levels       map[string]bucket.Level
}

// keeping is where the state goes. It is guarded by Manager.mu.
type keeping struct {
	kept        bool   // there is a cache file
	told        bool   // that there is none
	seq         uint64 // of the last record put
	dirty       bool   // some are not known to be durable
	flushing    bool
	unwritten   error     // why they could not be written
	unwrittenTo uint64    // and the last of them that was tried
	failures    int       // since they last could
	writeAgain  time.Time // not before then

	watch    chan struct{}
	notified time.Time // when watch was last
	owed     bool      // something has changed since

	moments bool                   // there is or was a momentRecord
	chains  map[string]chainRecord // those in use, by hash
	befores map[*host]chainRecord  // of leaves that are served while the state has another
}

// sharing is what of the state goes to Storage, and what comes from there. It is
// guarded by Manager.mu.
type sharing struct {
	unstored map[string]lack              // records that Storage lacks, by key
	damaged  map[string][sha256.Size]byte // sums of what it has and can't be read, which was said, by key
	turns    map[string]*turn             // at keys that are being stored or loaded
	adopting bool                         // what is put is not for Storage: mostly it comes from there
	client   *shared.Client               // of Storage; set by begin
	cached   []*host                      // whose certificates are in memory, and some others; if there is a CacheSize
	hand     int                          // where in it to go on looking for one to put out
}

// A lack is of a record that Storage is to have.
type lack struct {
	seq  uint64 // number of the record's last change
	err  error  // why it could not be stored, while others can
	late bool   // Storage may have had another meanwhile
}

// A Storage is a place that the members of a fleet share: processes, on one
// machine or many, that serve the same hosts. Every storage plugin of CertMagic
// is one, and packages store/dir, store/redis, store/postgres and store/etcd
// have others. Whether one keeps its promises package store/storetest tells.
//
// What the members lean on is that Load returns what was stored last, and that of
// all who call Lock with a name one returns at a time. A lock that is lost when
// its holder stalls costs nothing but work twice.
type Storage interface {
	// Lock blocks until no other holds the lock of that name, or ctx ends.
	Lock(ctx context.Context, name string) error
	Unlock(ctx context.Context, name string) error
	// Store returns when the value is durable.
	Store(ctx context.Context, key string, value []byte) error
	// Load returns an error that is fs.ErrNotExist where there is no value, and
	// not if it can't tell.
	Load(ctx context.Context, key string) ([]byte, error)
	Delete(ctx context.Context, key string) error
	// List returns the keys below a prefix, all of them or the next level. The
	// Manager does not call it.
	List(ctx context.Context, prefix string, recursive bool) ([]string, error)
}

// record returns the record of a kind and name with v in it.
func record(kind, name string, v any, fields ...int64) journal.Record {
	data, err := json.Marshal(v)
	if err != nil {
		panic("letsencrypt: internal error: " + err.Error()) // our own types all marshal
	}
	return journal.Format(kind, name, fields, data)
}

// putLocked changes the state: what the records say, and what is to be
// written. The caller makes it durable, if anything depends on it, with sync.
func (m *Manager) putLocked(rs ...journal.Record) {
	m.seq = m.log.Put(rs...)
	m.dirty = true
	urgent := false
	for i, r := range rs {
		if !m.adopting && m.started && m.Storage != nil && sharedKinds[r.Kind()] {
			m.unstoredLocked(r.Key(), m.seq-uint64(len(rs)-1-i))
		}
		kind := r.Kind()
		urgent = urgent || kind == kindAccount || kind == kindCert || kind == kindOrder
	}
	m.tellLocked(urgent)
	m.pokeLocked()
}

// setLocked changes the state by a record, and what we have decoded of it.
func (m *Manager) setLocked(r journal.Record) {
	m.putLocked(r)
	m.applyLocked(r)
}

func (m *Manager) set(r journal.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setLocked(r)
}

// forgetLocked deletes a record, if there is one.
func (m *Manager) forgetLocked(kind, name string) {
	if _, ok := m.log.Get(kind, name); ok {
		m.putLocked(journal.Delete(kind, name))
	}
}

// sync returns when all that was put so far is durable in the file and, of these
// keys, in Storage.
func (m *Manager) sync(keys ...string) error {
	m.mu.Lock()
	seq, failed := m.seq, m.unwritten != nil
	m.mu.Unlock()
	err := m.log.Sync(seq)
	if m.Storage != nil {
		err = errors.Join(err, m.share(failed, keys))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil && m.seq == seq && len(m.unstored) == 0 {
		m.dirty = false
	}
	switch {
	case err != nil:
		m.unwrittenLocked(err, seq)
	case m.unwritten != nil && seq >= m.unwrittenTo: // else it was another write, before
		m.unwritten, m.failures = nil, 0
		m.pokeLocked()
		m.reportLocked(Event{Kind: EventState})
	}
	return err
}

// unwrittenLocked notes that the state could not be written up to a number.
func (m *Manager) unwrittenLocked(err error, seq uint64) {
	m.unwrittenTo = max(m.unwrittenTo, seq)
	m.failures++
	m.writeAgain = time.Now().Add(backoff(m.failures, writeFirst, lookEvery))
	if m.unwritten == nil {
		m.reportLocked(Event{Kind: EventState, Err: err})
	}
	m.unwritten = err
}

// Marshal returns the state as text: accounts and their keys, certificates and
// theirs, the list of hosts, and whatever else lets a new Manager carry on as
// if it were this one. The text is secret.
func (m *Manager) Marshal() string { return m.log.Text() }

// Unmarshal takes over the state that another Manager's Marshal wrote, of this
// package or of rsc.io/letsencrypt (the latter's ACME v1 account is of no use
// any more; its address, hosts and certificates are kept). The accounts and the
// list of hosts become enc's; of two certificates for a host the later to
// expire stays. If enc can't be read, or only in part, it returns an error and
// changes nothing.
func (m *Manager) Unmarshal(enc string) error {
	records, err := parseState(enc)
	if err != nil {
		return fmt.Errorf("letsencrypt: Unmarshal: %w", err)
	}
	m.mu.Lock()
	t := &taking{m: m, put: m.putLocked}
	if m.hosts.Len() > 0 { // enc is let go of, but for what wins
		t.put = func(rs ...journal.Record) { m.putLocked(cloned(rs)...) }
	}
	defer func() { m.mu.Unlock(); m.readAhead(t.inUse) }()
	gone := map[string]journal.Record{}
	for url := range m.accounts {
		gone[url] = journal.Delete(kindAccount, url)
	}
	for _, only := range []string{kindHosts, kindRegister} {
		gone[only] = journal.Delete(only, onlyOne)
	}
	m.listSet = true
	list := m.listLocked()
	m.hosts.Grow(len(records))
	m.log.Grow(len(records))
	m.hereLocked(func() { // Storage gets what it lacks when we look there
		t.all(records, func(r journal.Record) {
			switch r.Kind() {
			case kindAccount:
				delete(gone, r.Name())
			case kindHosts, kindRegister:
				delete(gone, r.Kind())
			}
			if r.Kind() == kindHosts || r.Kind() == kindAccount || m.winsLocked(r) {
				t.put(r)
				m.applyLocked(r)
			}
		})
		for _, r := range gone {
			m.setLocked(r)
		}
	})
	if m.listLocked() != list {
		m.relistLocked()
	}
	return nil
}

// cloned returns records in memory of their own.
func cloned(rs []journal.Record) []journal.Record {
	own := make([]journal.Record, len(rs))
	for i, r := range rs {
		own[i] = journal.Record(strings.Clone(string(r)))
	}
	return own
}

// A certBatch is certificates that are taken over in one go.
type certBatch struct {
	records []journal.Record
	names   []string // of each of them
	lives   []life
}

// A life is when a host's certificate begins and ends, in Unix seconds.
type life struct {
	host                *host
	notBefore, notAfter int64
}

// A taking takes over certificates of which there may be millions. While the
// records of some are put another goroutine looks up the hosts of the next.
type taking struct {
	m       *Manager // whose mutex is held
	put     func(...journal.Record)
	putting sync.WaitGroup
	lives   []life           // of the records that are being put
	losers  []journal.Record // what we have outlives these
	inUse   []*host          // whose certificates clients were given before

	names []string // these two to be used again
	spare []life
}

// all takes over the certificates among records, and calls other for each that is
// none, when what stands before it is done. Hosts that there are for losers only
// are forgotten in the end.
func (t *taking) all(records []journal.Record, other func(journal.Record)) {
	for len(records) > 0 {
		var certs certBatch
		if certs, records = t.next(records); len(certs.records) > 0 {
			t.take(certs)
			continue
		}
		t.settle()
		other(records[0])
		records = records[1:]
	}
	t.settle()
	for _, r := range t.losers {
		if r.Kind() == kindCert {
			t.m.tidyLocked(t.m.hostLocked(r.Name()))
		}
	}
}

// next returns the certificates that records begin with, up to as many as are
// taken over in one go, and the other records. Each record is looked at here, and
// then when it is put: its memory is in no cache.
func (t *taking) next(rs []journal.Record) (b certBatch, rest []journal.Record) {
	b.names, b.lives = t.names[:0], t.spare[:0]
	for _, r := range rs[:min(putBatch, len(rs))] {
		var l life
		if r.Kind() != kindCert || !r.Fields(&l.notBefore, &l.notAfter) {
			break // one that is deleted has no fields
		}
		b.names, b.lives = append(b.names, r.Name()), append(b.lives, l)
	}
	n := len(b.lives)
	if t.names = b.names; n > 0 {
		t.spare = nil
	}
	b.records = rs[:n]
	return b, rs[n:]
}

// take takes over those that outlive ours. It has b's memory hold what it keeps.
func (t *taking) take(b certBatch) {
	records, lives := b.records[:0], b.lives[:0]
	for i, h := range t.m.hostsLocked(b.names) {
		if h.read { // there are two for it
			t.begin(records, lives)
			t.settle()
			records, lives = records[len(records):], lives[len(lives):]
		}
		l := b.lives[i]
		if l.host = h; t.m.barredLocked(b.records[i]) || l.notAfter <= t.m.keptUntilLocked(h) {
			t.losers = append(t.losers, b.records[i])
			continue
		}
		h.read = true
		records, lives = append(records, b.records[i]), append(lives, l)
	}
	t.begin(records, lives)
}

// begin puts records, after those before. A few are not worth a goroutine.
func (t *taking) begin(records []journal.Record, lives []life) {
	t.settle()
	t.lives = lives
	switch n := len(records); {
	case n > putBatch/10:
		t.putting.Go(func() { t.put(records...) })
	case n > 0:
		t.put(records...)
	}
}

// settle returns when all that was begun is done.
func (t *taking) settle() {
	t.putting.Wait()
	for _, l := range t.lives {
		l.host.read = false
		if l.host.leaf.Load() != nil {
			t.inUse = append(t.inUse, l.host)
		}
		t.m.applyCertLocked(l)
	}
	if n := len(t.lives); n > 0 {
		t.spare, t.lives = t.lives[:0:n], nil // what is behind them may be another's
	}
}

// readAhead reads certificates before clients have to wait for that.
func (m *Manager) readAhead(hosts []*host) {
	for _, h := range hosts {
		m.firstUse(h)
	}
}

// hostsLocked returns the hosts of these names. Those that are made are made
// together, and so are their names, which take the place of those given: what
// these share memory with goes.
func (m *Manager) hostsLocked(names []string) []*host {
	hosts, size, missing := m.hosts.GetAll(names), 0, 0
	for i, h := range hosts {
		if h == nil {
			size += len(names[i])
			missing++
		}
	}
	if missing == 0 {
		return hosts
	}
	made := make([]host, missing)
	var kept strings.Builder
	kept.Grow(size)
	for i, name := range names {
		if hosts[i] != nil {
			continue
		}
		at := kept.Len()
		kept.WriteString(name)
		names[i], hosts[i], made = kept.String()[at:], &made[0], made[1:]
		m.nameHost(hosts[i], names[i])
	}
	m.hosts.AddAll(names, hosts) // one name may be there twice
	return hosts
}

// parseState returns the records of a blob, each of them known to decode.
func parseState(enc string) (records []journal.Record, err error) {
	if strings.HasPrefix(strings.TrimSpace(enc), "{") {
		return importRSC([]byte(enc))
	}
	records, damaged, err := journal.SplitChecked(enc, check)
	if err == nil && damaged > 0 {
		err = fmt.Errorf("%d of its lines are damaged", damaged)
	}
	return records, err
}

// putBatch is how many certificates are put at a time: nobody else gets at the
// records meanwhile.
const putBatch = 1000

// parseList decodes a list of hosts. Its names share memory with it.
func parseList(s string) (list []string, err error) {
	if names, ok := plainList(s); ok {
		return strings.Split(names, listComma), nil
	}
	err = json.Unmarshal([]byte(s), &list)
	return list, err
}

// plainList returns what is between the first quote and the last of a list as
// journal.Format writes it, without spaces, in which nothing is escaped.
func plainList(s string) (names string, ok bool) {
	names, begins := strings.CutPrefix(s, `["`)
	names, ends := strings.CutSuffix(names, `"]`)
	return names, begins && ends && !strings.Contains(names, `\`) &&
		strings.Count(names, `"`) == 2*strings.Count(names, listComma)
}

const listComma = `","`

// check returns an error if the record is of a kind we know and does not decode.
func check(r journal.Record) error {
	if r.Kind() == kindCert { // decoded when its first client comes; the checksum vouches for it
		var notBefore, notAfter int64
		if !r.Fields(&notBefore, &notAfter) && !r.Deleted() {
			return fmt.Errorf("record %q has no notBefore and notAfter", r.Key())
		}
		return nil
	}
	if r.Deleted() {
		return nil
	}
	var v any
	switch r.Kind() {
	case kindAccount:
		v = new(ca.Credentials)
	case kindBackoff:
		v = new(trouble)
	case kindHosts:
		if _, ok := plainList(r.JSON()); ok {
			return nil
		}
		v = new([]string)
	case kindLimit:
		v = new(bucket.Level)
	case kindMoment:
		v = new(momentRecord)
	case kindOrder:
		v = new(orderRecord)
	case kindPause:
		v = new(pause)
	case kindRegister:
		v = new(registration)
	case kindRevoked:
		v = new(revocation)
	case kindStaple:
		v = new(stapleRecord)
	default:
		return nil
	}
	if err := json.Unmarshal([]byte(r.JSON()), v); err != nil {
		return fmt.Errorf("record %q: %w", r.Key(), err)
	}
	return nil
}

// merge takes over what was read from the cache file, first when it is opened
// and then whenever another process has written to it.
func (m *Manager) merge(records []journal.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	relist := false
	t := &taking{m: m, put: m.log.Adopt}
	t.all(records, func(r journal.Record) {
		if err := check(r); err != nil {
			m.reportLocked(Event{Kind: EventState, Err: fmt.Errorf("in the cache file: %w", err)})
		} else if m.winsLocked(r) {
			t.put(r)
			m.applyLocked(r)
			relist = relist || r.Kind() == kindHosts
		} else {
			t.losers = append(t.losers, r)
		}
	})
	for _, r := range t.losers {
		if ours, ok := m.log.Get(r.Kind(), r.Name()); ok && ours != r {
			m.seq, m.dirty = m.log.Put(ours), true
		}
	}
	if relist {
		m.relistLocked()
	}
	m.tellLocked(true)
}

// winsLocked reports whether a record from the cache file replaces what this
// process has.
func (m *Manager) winsLocked(r journal.Record) bool {
	switch r.Kind() {
	case kindHosts:
		return !m.listSet
	case kindCert:
		return m.laterLocked(r, m.hosts.Get(r.Name()))
	case kindAccount:
		return m.accounts[r.Name()].URL == ""
	case kindOrder:
		var rec orderRecord
		return r.Deleted() || json.Unmarshal([]byte(r.JSON()), &rec) == nil && !m.barredKeyLocked(r.Name(), rec.Key)
	case kindRevoked:
		var rec revocation
		ours := m.revocations[r.Name()]
		return r.Deleted() || json.Unmarshal([]byte(r.JSON()), &rec) == nil && time.Now().Unix() <= rec.Until &&
			(ours == nil || ours.waits() || !rec.pending())
	case kindStaple:
		var rec stapleRecord
		return r.Deleted() || json.Unmarshal([]byte(r.JSON()), &rec) == nil && time.Now().Unix() <= rec.Until
	}
	return true
}

// laterLocked reports whether the certificate in r outlives the one we have for
// the host, and was not revoked.
func (m *Manager) laterLocked(r journal.Record, h *host) bool {
	if m.barredLocked(r) {
		return false
	}
	notAfter, _ := r.Field(1)
	return h == nil || notAfter > m.keptUntilLocked(h)
}

// keptUntilLocked returns when the certificate expires that the state has for a
// host, zero if it has none.
func (m *Manager) keptUntilLocked(h *host) int64 {
	if h.evicted {
		return 0
	}
	if h.flight != nil { // there may be one that is not served yet
		if r, ok := m.log.Get(kindCert, h.name); ok {
			notAfter, _ := r.Field(1)
			return notAfter
		}
	}
	return h.notAfter
}

// barredLocked reports whether r is a certificate that must not come back.
func (m *Manager) barredLocked(r journal.Record) bool {
	if len(m.revokedHosts) == 0 || !m.revokedHosts[r.Name()] {
		return false // nothing is decoded, of millions
	}
	var rec certRecord
	if json.Unmarshal([]byte(r.JSON()), &rec) != nil {
		return false
	}
	was := m.revocations[leafHash(rec.Leaf)]
	return was != nil && !was.pending() || m.barredKeyLocked(r.Name(), rec.Key)
}

// barredKeyLocked reports whether a private key for a host was compromised, and
// the certificate that it had revoked.
func (m *Manager) barredKeyLocked(host string, key []byte) bool {
	r := m.compromisedLocked(host, key)
	return r != nil && !r.pending()
}

// compromised reports whether a private key for a host is no secret.
func (m *Manager) compromised(host string, key []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.compromisedLocked(host, key) != nil
}

// compromisedLocked returns the revocation, done if one is, of a certificate with
// the private key, that is for its compromise.
func (m *Manager) compromisedLocked(host string, key []byte) (found *revocation) {
	if !m.revokedHosts[host] {
		return nil
	}
	for _, r := range m.revocations {
		if r.Host == host && r.compromised() && r.Public == publicHash(key) && (found == nil || !r.pending()) {
			found = r
		}
	}
	return found
}

// publicHash returns the hash of the public key to a private one, "" if there is
// none.
func publicHash(key []byte) string {
	signer, err := parseKey(key)
	if err != nil {
		return ""
	}
	der, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return ""
	}
	return leafHash(der)
}

// applyRevocationLocked takes in that a certificate is to be revoked or, if it
// was, sees it out of memory and state.
func (m *Manager) applyRevocationLocked(hash string, r *revocation) {
	if m.revocations == nil {
		m.revocations, m.revokedHosts = make(map[string]*revocation), make(map[string]bool)
	}
	m.revokedHosts[r.Host] = true
	if m.revocations[hash] = r; m.started {
		r.next = time.Now().Add(revokeLater) // whoever wrote it is at it
	}
	if r.pending() {
		return
	}
	if o, ok := m.orders[r.Host]; ok && m.barredKeyLocked(r.Host, o.Key) {
		m.setLocked(journal.Delete(kindOrder, r.Host))
	}
	h := m.hosts.Get(r.Host)
	if h == nil {
		return
	}
	if cert, ok := m.log.Get(kindCert, r.Host); ok && m.barredLocked(cert) {
		m.withdrawLocked(h)
		m.tidyLocked(h)
		return
	}
	leaf := h.leaf.Load()
	switch {
	case leaf == nil || leafHash(leaf.Certificate[0]) != hash:
	case h.next != nil: // a revoked one is not worth waiting with
		m.swapLocked(h.next, h.next.served)
	default:
		h.leaf.Store(nil)
	}
}

// withdrawLocked takes a host's certificate out of memory and state.
func (m *Manager) withdrawLocked(h *host) {
	for _, kind := range []string{kindCert, kindMoment, kindStaple} {
		m.forgetLocked(kind, h.name)
	}
	h.notBefore, h.notAfter, h.next = 0, 0, nil
	delete(m.befores, h)
	h.leaf.Store(nil)
	m.requeueLocked(h)
}

// applyLocked takes what a record says, which check has found to decode, into
// the decoded state.
func (m *Manager) applyLocked(r journal.Record) {
	name := strings.Clone(r.Name()) // which is kept, and r may be a part of something larger
	decode := func(v any) bool {
		return !r.Deleted() && json.Unmarshal([]byte(r.JSON()), v) == nil
	}
	switch r.Kind() {
	case kindAccount:
		setOrDelete(&m.accounts, name, decode)
		for _, a := range m.authorities {
			if a.Directory == name {
				a.account.Reset()
			}
		}
	case kindOrder:
		setOrDelete(&m.orders, name, decode)
	case kindPause:
		setOrDelete(&m.pauses, name, decode)
	case kindLimit:
		setOrDelete(&m.levels, name, decode)
	case kindRegister:
		m.registration = registration{}
		decode(&m.registration)
	case kindHosts:
		m.listed = !r.Deleted()
	case kindBackoff:
		if r.Deleted() && m.hosts.Get(name) == nil {
			return
		}
		t := new(trouble)
		if !decode(t) {
			t = nil
		}
		m.hostLocked(name).trouble = t
		m.requeueLocked(m.hostLocked(name))
	case kindCert:
		if r.Deleted() && m.hosts.Get(name) == nil {
			return
		}
		l := life{host: m.hostLocked(name)}
		r.Fields(&l.notBefore, &l.notAfter) // none if it is deleted
		m.applyCertLocked(l)
	case kindRevoked:
		rec := new(revocation)
		if !decode(rec) {
			delete(m.revocations, name)
			return
		}
		m.applyRevocationLocked(name, rec)
	case kindMoment:
		var rec momentRecord
		m.moments = true
		h := m.hosts.Get(name)
		if h == nil || h.revoked || !decode(&rec) || rec.NotAfter != 0 && rec.NotAfter != h.notAfter {
			return
		}
		if rec.Moment.After(time.Unix(h.notBefore, 0)) && rec.Moment.Before(h.expiry()) {
			moment, spread := rec.Moment.UnixNano(), time.Duration(0)
			if m.Storage != nil { // lest all members come at once
				spread = min(fleetSpread, h.expiry().Sub(rec.Moment)/4)
			}
			if h.renewal < moment || h.renewal > moment+int64(spread) {
				h.renewal = moment + int64(mathrand.N(spread+1))
			}
			m.requeueLocked(h)
		}
	}
}

// applyCertLocked takes over a certificate that was put.
func (m *Manager) applyCertLocked(l life) {
	h := l.host
	if h.evicted && h.notBefore == l.notBefore && h.notAfter == l.notAfter {
		h.evicted = false // and stored
		m.cacheLocked(h)
		return
	}
	h.hold(l.notBefore, l.notAfter, nil)
	delete(m.befores, h)
	m.newest = max(m.newest, l.notBefore)
	if m.moments {
		if r, ok := m.log.Get(kindMoment, h.name); ok {
			m.applyLocked(r)
		}
	}
	if m.Storage != nil && m.adopting && m.started { // another member made it
		h.poll = time.Now().Add(mathrand.N(pollSoon)).UnixNano()
		if h.trouble != nil {
			m.setLocked(journal.Delete(kindBackoff, h.name))
		}
	}
	m.cacheLocked(h)
	m.requeueLocked(h)
}

func setOrDelete[V any](views *map[string]V, name string, decode func(any) bool) {
	var v V
	if !decode(&v) {
		delete(*views, name)
		return
	}
	if *views == nil {
		*views = make(map[string]V)
	}
	(*views)[name] = v
}

// joinFleetLocked sets up what the Manager and other members share.
func (m *Manager) joinFleetLocked() {
	m.client = &shared.Client{Storage: m.Storage, Wait: storageWait}
	m.others.Load = m.answerElsewhere
}

// A turn at a key of Storage is somebody's who stores or loads the record there.
type turn struct {
	done chan struct{} // closed at the end
	err  error         // what came of it
}

// takeTurn waits for who is at a key of Storage, and returns what came of that:
// nobody is to wait as long for the same. The caller ends the turn.
func (m *Manager) takeTurn(key string) (t *turn, err error) {
	t = &turn{done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		other := m.turns[key]
		if other == nil {
			break
		}
		m.mu.Unlock()
		<-other.done
		m.mu.Lock()
		err = other.err
	}
	if m.turns == nil {
		m.turns = make(map[string]*turn)
	}
	m.turns[key] = t
	return t, err
}

func (m *Manager) endTurnLocked(key string, t *turn, err error) {
	delete(m.turns, key)
	t.err = err
	close(t.done)
}

func (m *Manager) unstoredLocked(key string, seq uint64) {
	l := m.unstored[key]
	l.seq = seq
	m.lackLocked(key, l)
}

// offerLocked has the record with a key stored unless Storage has a better one.
func (m *Manager) offerLocked(key string) {
	if l, ok := m.unstored[key]; !ok || !l.late {
		l.seq, l.late = m.seq, true
		m.lackLocked(key, l)
		m.pokeLocked()
	}
}

func (m *Manager) lackLocked(key string, l lack) {
	if m.unstored == nil {
		m.unstored = make(map[string]lack)
	}
	if _, ok := m.unstored[key]; !ok {
		key = strings.Clone(key) // it may be a part of something larger
	}
	m.unstored[key] = l
	m.dirty = true
}

// lackingLocked returns the keys of what Storage lacks of a name, or of all, in
// the order of the changes.
func (m *Manager) lackingLocked(of func(name string) bool) []string {
	var keys []string
	for key := range m.unstored {
		if _, name := shared.Split(key); of(name) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Compare(m.unstored[a].seq, m.unstored[b].seq) })
	return keys
}

// flush makes durable all there is.
func (m *Manager) flush() error {
	m.mu.Lock()
	keys := m.lackingLocked(func(string) bool { return true })
	m.mu.Unlock()
	return m.sync(keys...)
}

// flushHost makes durable what there is of a host.
func (m *Manager) flushHost(host string) error {
	m.mu.Lock()
	keys := m.lackingLocked(func(name string) bool { return name == host })
	m.mu.Unlock()
	return m.sync(keys...)
}

// share stores what Storage lacks of these keys. An error says that it can store
// nothing; failed, that this was so. If one record can't be stored and others
// can, that is said once: see stored.
func (m *Manager) share(failed bool, keys []string) error {
	if failed {
		if err := m.probe(); err != nil {
			return fmt.Errorf("%w: %w", errAway, err)
		}
	}
	for _, key := range keys {
		err := m.store(key)
		if err == nil {
			continue
		}
		if m.probe() != nil {
			return fmt.Errorf("%w: %w", errAway, err)
		}
		m.mu.Lock()
		l, lacking := m.unstored[key]
		if lacking && l.err == nil {
			m.reportLocked(Event{Kind: EventState, Err: err})
		}
		if lacking {
			l.err = err
			m.unstored[key] = l
		}
		m.writeAgain = time.Now().Add(lookEvery)
		m.mu.Unlock()
	}
	return nil
}

// probe returns nil if Storage can store anything.
func (m *Manager) probe() error {
	const kind = "probe"
	return m.client.Store(context.Background(), shared.Key(kind, onlyOne), shared.Encode(record(kind, onlyOne, true)))
}

// store stores the record with a key, or deletes it, if Storage lacks that. It is
// done after Shutdown, too. What could not be done at once is looked at first:
// another member may have been there meanwhile.
func (m *Manager) store(key string) error {
	kind, name := shared.Split(key)
	t, err := m.takeTurn(key)
	m.mu.Lock()
	was, lacking := m.unstored[key]
	m.mu.Unlock()
	if err == nil && was.late {
		var theirs []journal.Record
		if theirs, err = m.load(context.Background(), kind, name); err == nil {
			lacking = m.outdoes(key, theirs)
		}
	}
	if err == nil && lacking {
		err = m.storeNow(kind, name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endTurnLocked(key, t, err)
	now, ok := m.unstored[key]
	switch {
	case !ok:
	case err != nil:
		now.late = true
		m.unstored[key] = now
	case now.seq == was.seq:
		delete(m.unstored, key)
		if h := m.hosts.Get(name); h != nil && kind == kindCert {
			h.stored = true
		}
	}
	return err
}

func (m *Manager) storeNow(kind, name string) error {
	m.mu.Lock()
	value := m.valueLocked(kind, name)
	m.mu.Unlock()
	key := shared.Key(kind, name)
	if value != nil {
		return newStorageError("storing", kind, name, m.client.Store(context.Background(), key, value))
	}
	err := m.client.Delete(context.Background(), key)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return newStorageError("deleting", kind, name, err)
}

// outdoes reports whether ours is to take the place of what Storage has. If not,
// that is taken over.
func (m *Manager) outdoes(key string, theirs []journal.Record) bool {
	kind, name := shared.Split(key)
	m.mu.Lock()
	defer m.mu.Unlock()
	ours, ok := m.log.Get(kind, name)
	if len(theirs) == 0 {
		return ok
	}
	their := theirs[len(theirs)-1]
	if kind == kindCert && m.barredLocked(their) {
		return true
	}
	if ok && their != ours && !m.truerLocked(their, ours) {
		return true
	}
	m.adoptLocked(kind, name, theirs)
	return false
}

// stored is sync for somebody who depends on one record.
func (m *Manager) stored(kind, name string) error {
	key := journal.Delete(kind, name).Key()
	if err := m.sync(key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unstored[key].err
}

// valueLocked returns what Storage is to have for a kind and name, nil if nothing.
func (m *Manager) valueLocked(kind, name string) []byte {
	r, ok := m.log.Get(kind, name)
	if !ok {
		return nil
	}
	var rec certRecord
	if kind == kindCert && json.Unmarshal([]byte(r.JSON()), &rec) == nil {
		if above, ok := m.log.Get(kindChain, rec.Chain); ok {
			return shared.Encode(above, r)
		}
	}
	return shared.Encode(r)
}

var (
	errAway      = errors.New("the storage fails")
	errElsewhere = errors.New("another member of the fleet sees to it")
)

// A storageError is one of Storage's.
type storageError struct {
	doing string
	err   error
}

func (e *storageError) Error() string { return e.doing + ": " + e.err.Error() }
func (e *storageError) Unwrap() error { return e.err }

func newStorageError(doing, kind, name string, err error) error {
	if err == nil {
		return nil
	}
	return &storageError{doing + " the " + kind + " of " + name, err}
}

// load returns the records that Storage has for a kind and name, none if it has
// nothing. A damaged value, which is said, is none.
func (m *Manager) load(ctx context.Context, kind, name string) ([]journal.Record, error) {
	value, err := m.client.Load(ctx, shared.Key(kind, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, newStorageError("loading", kind, name, err)
	}
	records, err := shared.Decode(value, kind, name)
	for _, r := range records {
		err = cmp.Or(err, check(r))
	}
	if errors.Is(err, journal.ErrVersion) || errors.Is(err, shared.ErrForeign) {
		return nil, newStorageError("loading", kind, name, err)
	}
	key := journal.Delete(kind, name).Key()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		delete(m.damaged, key)
		return records, nil
	}
	if sum := sha256.Sum256(value); m.damaged[key] != sum { // it may be looked at again every few seconds
		if m.damaged == nil {
			m.damaged = make(map[string][sha256.Size]byte)
		}
		m.damaged[key] = sum
		m.reportLocked(Event{Kind: EventState, Err: fmt.Errorf("in the storage, the %s of %s: %w", kind, name, err)})
	}
	return nil, nil
}

// pull takes over what Storage has for a kind and name. If Storage as a whole
// fails, that is reported.
func (m *Manager) pull(ctx context.Context, kind, name string) error {
	if m.Storage == nil {
		return nil
	}
	_, err := m.find(ctx, kind, name)
	return err
}

// find is pull where there is a Storage, and reports whether we have the same now.
func (m *Manager) find(ctx context.Context, kind, name string) (same bool, err error) {
	key := journal.Delete(kind, name).Key()
	t, err := m.takeTurn(key)
	var records []journal.Record
	if err == nil {
		records, err = m.load(ctx, kind, name)
	}
	err = m.outage(ctx, err)
	bare := m.bare(ctx, name, records)
	m.firstStaple(ctx, bare)
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil {
		m.endTurnLocked(key, t, nil) // others have not had enough
	} else {
		m.endTurnLocked(key, t, err)
	}
	if _, newer := m.unstored[key]; err == nil && !newer {
		old, until := m.servedLocked(name)
		if bare != nil && bare.last != nil && m.takesLocked(records[len(records)-1]) {
			m.putStapleLocked(bare) // first, for a client may come for the certificate now
		}
		m.adoptLocked(kind, name, records)
		m.waitLocked(bare, old, until)
	}
	ours, _ := m.log.Get(kind, name)
	return len(records) > 0 && records[len(records)-1] == ours, err
}

// bare returns the certificate that was loaded for a host if it must be stapled and
// Storage has no staple for it yet, nil otherwise.
func (m *Manager) bare(ctx context.Context, name string, records []journal.Record) *stapled {
	if !m.MustStaple || len(records) == 0 || records[len(records)-1].Kind() != kindCert {
		return nil
	}
	r := records[len(records)-1]
	m.mu.Lock()
	h := m.hosts.Get(name)
	_, newer := m.unstored[r.Key()]
	takes := h != nil && !newer && m.takesLocked(r)
	m.mu.Unlock()
	if !takes {
		return nil
	}
	m.pull(ctx, kindStaple, name) // if it can't be told there is none
	var rec certRecord
	if json.Unmarshal([]byte(r.JSON()), &rec) != nil {
		return nil
	}
	chain, err := parseChain(records[0])
	if rec.came(chain); err != nil || !rec.Stapled {
		return nil
	}
	leaf, err := x509.ParseCertificate(rec.Leaf)
	if err != nil || !certs.MustStaple(leaf) {
		return nil
	}
	key, err := parseKey(rec.Key)
	if err != nil {
		return nil
	}
	s := newStapled(h, m.authority(rec.CA), rec.certificate(key), true)
	if m.keptStaple(s) != nil {
		return nil
	}
	return s
}

// firstStaple has a certificate that is bare stapled, if clients are not given its
// predecessor meanwhile. The member that obtained it may be about to store one.
func (m *Manager) firstStaple(ctx context.Context, s *stapled) {
	if s == nil {
		return
	}
	if s.host.leaf.Load() == nil {
		m.firstUse(s.host) // of the predecessor, which the state may have
	}
	m.mu.Lock()
	old, until := m.servedLocked(s.host.name)
	ask := (old == nil || !time.Now().Before(until)) && !s.host.evicted && m.staplings < maxStaplings
	if ask {
		m.staplings++
	}
	m.mu.Unlock()
	if !ask {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stapleWait)
	defer cancel()
	if resp, err := m.fetchStaple(ctx, s); err == nil && !resp.Revoked {
		s.take(resp) // else it is tried again, and reported
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.staplings--
}

// servedLocked returns the certificate that clients are given for a host, and
// until when they may be.
func (m *Manager) servedLocked(name string) (leaf *tls.Certificate, until time.Time) {
	h := m.hosts.Get(name)
	switch {
	case h == nil:
		return nil, time.Time{}
	case h.next != nil:
		return h.leaf.Load(), h.next.until
	}
	return h.leaf.Load(), h.expiry()
}

// waitLocked has the old certificate served until the one that took its place,
// and that is bare, has its first staple.
func (m *Manager) waitLocked(s *stapled, old *tls.Certificate, until time.Time) {
	now := time.Now()
	if s == nil || s.last != nil || old == nil || !now.Before(until) || s.host.leaf.Load() != nil {
		return
	}
	s.host.leaf.Store(old)
	s.host.next, s.until = s, until
	m.queueStapleLocked(s, now)
}

// outage returns an error of Storage's as errAway if Storage as a whole fails, which
// it notes.
func (m *Manager) outage(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, errAway) {
		return err
	}
	m.mu.Lock()
	known := m.unwritten != nil
	m.mu.Unlock()
	if slow := errors.Is(err, context.DeadlineExceeded); !slow && !known && m.probe() == nil {
		return err
	}
	err = fmt.Errorf("%w: %w", errAway, err)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unwritten == nil {
		m.dirty = true // so that the next write sees whether it works again
		m.unwrittenLocked(err, m.seq)
		m.pokeLocked()
	}
	return err
}

// hereLocked has what f puts kept here and not in Storage.
func (m *Manager) hereLocked(f func()) {
	was := m.adopting
	m.adopting = true
	f()
	m.adopting = was
}

// adoptLocked puts what Storage has for a kind and name in the place of ours.
func (m *Manager) adoptLocked(kind, name string, records []journal.Record) {
	if len(records) == 0 {
		m.hereLocked(func() { m.lackedLocked(kind, name) })
		return
	}
	m.hereLocked(func() {
		for _, r := range records {
			_, known := m.log.Get(r.Kind(), r.Name())
			switch {
			case r.Kind() == kindChain && !known:
				m.putLocked(r)
			case r.Kind() == kind && m.takesLocked(r):
				m.setLocked(r)
			}
		}
	})
	if ours, _ := m.log.Get(kind, name); kind == kindCert && ours == records[len(records)-1] {
		m.hostLocked(name).stored = true
	}
}

// lackedLocked takes in that Storage has nothing for a kind and name. Somebody
// has seen to it that what passes is over; an account stays what it is.
func (m *Manager) lackedLocked(kind, name string) {
	r, ok := m.log.Get(kind, name)
	switch {
	case !ok:
	case kind == kindOrder, kind == kindBackoff, kind == kindPause, kind == kindMoment:
		m.setLocked(journal.Delete(kind, name))
	case kind == kindRevoked && m.revocations[name].waits(): // whoever asked for it gave up
		m.setLocked(journal.Delete(kind, name))
	case kind == kindAccount, kind == kindRegister:
		m.unstoredLocked(r.Key(), m.seq)
	}
}

// takesLocked reports whether a record from Storage is taken over.
func (m *Manager) takesLocked(r journal.Record) bool {
	ours, _ := m.log.Get(r.Kind(), r.Name())
	return r != ours && m.truerLocked(r, ours)
}

// truerLocked reports whether a record from Storage replaces ours. Of two
// certificates that is the one made later: one may be cut short.
func (m *Manager) truerLocked(r, ours journal.Record) bool {
	if r.Kind() == kindOrder || r.Kind() == kindRevoked || ours == "" {
		return m.winsLocked(r)
	}
	switch r.Kind() {
	case kindCert:
		theirs, _ := r.Field(0)
		made, _ := ours.Field(0)
		return !m.barredLocked(r) && (theirs > made || theirs == made && m.laterLocked(r, m.hosts.Get(r.Name())))
	case kindStaple:
		var theirs, rec stapleRecord
		json.Unmarshal([]byte(r.JSON()), &theirs) // both were checked
		json.Unmarshal([]byte(ours.JSON()), &rec)
		return rec.Leaf != theirs.Leaf || theirs.Until > rec.Until
	}
	return true
}

// lock takes a lock of the fleet's, which unlock gives back. Some storages return
// at once while another has it: they are asked again until over says that it is
// not needed any more, or fails. Those that wait need not have it either, one after
// the other or till a crashed holder's expires, if over says so before. Where Lock
// did nothing but wait the error is errElsewhere.
func (m *Manager) lock(ctx context.Context, name string, over func() (bool, error)) (unlock func(), err error) {
	ctx, cancel := context.WithCancel(ctx) // some hold a lock for as long as its context lives
	limit := time.AfterFunc(lockWait, cancel)
	for n := 1; ; n++ {
		began := time.Now()
		stop := watch(ctx, over, cancel)
		err = m.client.Lock(ctx, name)
		switch needless := stop(); {
		case needless:
			limit.Stop()
			if err == nil {
				m.unlock(name)
			}
			return func() {}, nil
		case err == nil && limit.Stop():
			return func() { m.unlock(name); cancel() }, nil
		case err == nil: // at the last moment
			m.unlock(name)
			err = errElsewhere
		case ctx.Err() != nil && time.Since(began) > lockMost:
			err = errElsewhere
		}
		if done, failed := over(); done || failed != nil {
			cancel()
			return func() {}, failed
		}
		select {
		case <-time.After(backoff(n, lockFirst, lockMost)):
		case <-ctx.Done():
			cancel()
			return func() {}, &storageError{"taking the lock " + name, err}
		}
	}
}

// watch asks now and then whether it is over, and calls then if so, until stop,
// which reports whether it was.
func watch(ctx context.Context, over func() (bool, error), then func()) (stop func() bool) {
	ctx, end := context.WithCancel(ctx)
	was := make(chan bool)
	go func() {
		done, err := false, error(nil)
		for n := 1; !done && err == nil && ctx.Err() == nil; n++ {
			select {
			case <-time.After(backoff(n, lockFirst, lockMost)):
				done, err = over() // what can't be told now Lock waits for alone
			case <-ctx.Done():
			}
		}
		if done {
			then()
		}
		was <- done
	}()
	return func() bool { end(); return <-was }
}

// unlock gives a lock back. If that failed with the whole storage it is tried again:
// some hold a lock for ever that was not given back.
func (m *Manager) unlock(name string) {
	err := m.client.Unlock(context.Background(), name)
	for n := 1; n < unlocks && m.ctx.Err() == nil && errors.Is(m.outage(m.ctx, err), errAway); n++ {
		select {
		case <-time.After(backoff(n, lockFirst, lockMost)):
		case <-m.ctx.Done():
		}
		if m.client.Unlock(context.Background(), name) == nil {
			return
		}
	}
	if err != nil {
		m.logger().Warn("letsencrypt: a lock was lost, or could not be given back, so that another member may have done the same", "lock", name, "err", err)
	}
}

// hostLock returns the name of a host's lock. A wildcard has that of the name
// below, whose records of dns-01 are its own.
func hostLock(host string) string { return shared.Lock("host", strings.TrimPrefix(host, "*.")) }

// alone keeps the other members of the fleet from ordering for a flight's host
// until release, and takes over what they did for it before.
func (m *Manager) alone(f *flight) (release func(), err error) {
	host := f.host.name
	patience := time.AfterFunc(lockMost, func() { m.waitElsewhere(f, +1) })
	unlock, err := m.lock(m.ctx, hostLock(host), func() (bool, error) {
		err := m.pull(m.ctx, kindCert, host)
		return m.overtaken(f) != nil, err
	})
	if !patience.Stop() {
		m.waitElsewhere(f, -1) // others have its place among the flights meanwhile
	}
	if err == nil {
		err = m.flushHost(host) // what could not be stored before
	}
	for _, kind := range []string{kindCert, kindOrder, kindBackoff, kindMoment} {
		_, known := m.log.Get(kind, host)
		if err == nil && (known || m.overtaken(f) == nil) { // else the next has waited long enough
			err = m.pull(m.ctx, kind, host)
		}
	}
	return func() {
		m.flushHost(host) // reports its error
		unlock()
	}, err
}

// shareAccount takes over the account at a CA that another member of the fleet
// made. If there is none it keeps the others from making one until release.
func (m *Manager) shareAccount(ctx context.Context, directory string) (release func(), err error) {
	if m.Storage == nil {
		return func() {}, nil
	}
	has := func() (bool, error) {
		err := m.pullAccount(ctx, directory)
		cred, _ := m.credentials(directory)
		return cred.URL != "", err
	}
	if ok, err := has(); ok || err != nil {
		return func() {}, err
	}
	unlock, err := m.lock(ctx, shared.Lock("account", directory), has)
	if err != nil {
		return func() {}, err
	}
	if ok, err := has(); !ok && err != nil {
		unlock()
		return func() {}, err
	}
	return unlock, nil
}

func (m *Manager) pullAccount(ctx context.Context, directory string) error {
	return cmp.Or(m.pull(ctx, kindAccount, directory), m.pull(ctx, kindRegister, onlyOne))
}

// catchUp takes over what other members of the fleet did for a host that we hold
// a certificate for, and returns when the CA is next to be asked about it.
func (m *Manager) catchUp(h *host) (next time.Time, err error) {
	if m.Storage == nil {
		return time.Time{}, nil
	}
	leaf := m.current(h.name)
	same, err := m.find(m.ctx, kindCert, h.name)
	if leaf = cmp.Or(leaf, m.current(h.name)); err == nil && leaf != "" {
		err = m.pull(m.ctx, kindRevoked, leaf)
	}
	if err == nil {
		err = m.pull(m.ctx, kindMoment, h.name)
	}
	if err != nil {
		return time.Now().Add(lookEvery), err
	}
	if same && m.MustStaple && h.leaf.Load() == nil && time.Until(m.stapledUntil(h.name)) < 2*catchUpEvery {
		m.pull(m.ctx, kindStaple, h.name) // its first client is to have one that is up to date
	}
	if !same {
		m.offer(h.name)
	}
	rec := m.moment(h.name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if rec.NotAfter != h.notAfter {
		return time.Time{}, nil
	}
	return rec.Next, nil
}

// stapledUntil returns how long the staple that is kept for a host is good: till
// 1970 if there is none.
func (m *Manager) stapledUntil(host string) time.Time {
	var rec stapleRecord
	if r, ok := m.log.Get(kindStaple, host); ok {
		json.Unmarshal([]byte(r.JSON()), &rec) // it was checked when it came in
	}
	return time.Unix(rec.Until, 0)
}

// recovered sees whether what was found in Storage means that it works again.
func (m *Manager) recovered() {
	m.mu.Lock()
	failed := m.unwritten != nil
	m.mu.Unlock()
	if failed && m.Storage != nil {
		m.flush() // reports what came of it
	}
}

// offerAllLocked offers Storage what it does not know of, if this process was alone
// before: what is under way, and what is to be waited for. Certificates follow
// one by one.
func (m *Manager) offerAllLocked() {
	if m.Storage == nil {
		return
	}
	for name := range m.accounts {
		m.offerLocked(journal.Delete(kindAccount, name).Key())
	}
	for name := range m.orders {
		m.offerLocked(journal.Delete(kindOrder, name).Key())
	}
	for name := range m.pauses {
		m.offerLocked(journal.Delete(kindPause, name).Key())
	}
	for name := range m.revocations {
		m.offerLocked(journal.Delete(kindRevoked, name).Key())
	}
	for name, h := range m.hosts.All() {
		if h.trouble != nil {
			m.offerLocked(journal.Delete(kindBackoff, name).Key())
		}
	}
}

// offer has a certificate stored that is good and that Storage lacks: it is from
// before there was one, or Storage lost it.
func (m *Manager) offer(host string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.log.Get(kindCert, host)
	if h := m.hosts.Get(host); ok && h != nil && time.Now().Before(h.expiry()) {
		m.offerLocked(r.Key())
	}
}

// moment returns what is kept of when to renew a host's certificate.
func (m *Manager) moment(host string) (rec momentRecord) {
	if r, ok := m.log.Get(kindMoment, host); ok {
		json.Unmarshal([]byte(r.JSON()), &rec) // it was checked when it came in
	}
	return rec
}

// cacheLocked notes that a host's certificate is in memory now, and puts others
// out that have not been asked for of late, if there are too many.
func (m *Manager) cacheLocked(h *host) {
	if m.Storage == nil || m.CacheSize <= 0 {
		return
	}
	if !h.cached {
		h.cached = true
		m.cached = append(m.cached, h)
	}
	for tries := 2 * len(m.cached); len(m.cached) > m.CacheSize && tries > 0; tries-- {
		m.hand %= len(m.cached)
		old := m.cached[m.hand]
		gone := m.hosts.Get(old.name) != old
		switch {
		case !gone && (old == h || old.marks.Load()&used != 0 || !m.evictLocked(old)):
			old.unmark(used)
			m.hand++
		default:
			old.cached = false
			last := len(m.cached) - 1
			m.cached[m.hand], m.cached[last] = m.cached[last], nil
			m.cached = m.cached[:last]
		}
	}
}

// evictLocked puts a host's certificate out of memory: what is left is when it is
// due. It reports whether there is none in memory any more.
func (m *Manager) evictLocked(h *host) bool {
	if m.hosts.Get(h.name) != h {
		return true // it was forgotten, and another perhaps has its name
	}
	_, lacksStaple := m.unstored[journal.Delete(kindStaple, h.name).Key()]
	if lacksStaple || h.flight != nil || h.polling || h.next != nil {
		return false
	}
	if key := journal.Delete(kindCert, h.name).Key(); !h.stored {
		if _, ok := m.log.Get(kindCert, h.name); ok {
			m.offerLocked(key) // it is from before there was a Storage
			return false
		}
	}
	m.hereLocked(func() {
		for _, kind := range []string{kindCert, kindStaple} {
			m.forgetLocked(kind, h.name)
		}
	})
	h.evicted = h.held()
	h.leaf.Store(nil)
	return true
}

// Watch returns a channel that receives whenever the state has changed since
// it was last received from, so that
//
//	for range m.Watch() {
//		save(m.Marshal())
//	}
//
// saves what there is at the start and every change after it. Every call
// returns the same channel, which holds a notification at the first. Changes
// that come in quick succession may make one notification, but never none: a
// slow reader misses states in between, not the last. The channel is never closed.
func (m *Manager) Watch() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.watch == nil {
		m.watch = make(chan struct{}, 1)
		m.watch <- struct{}{} // never blocks: it was just made
	}
	return m.watch
}

// watchEvery is how often Watch is told of changes other than to accounts,
// orders and certificates.
const watchEvery = time.Second

// tellLocked tells Watch's reader of a change, at once or, if it is not urgent
// and the last one was just told, from dispatch when that is a second ago.
func (m *Manager) tellLocked(urgent bool) {
	if m.watch == nil {
		return
	}
	now := time.Now()
	if !urgent && m.started && !m.closed && now.Sub(m.notified) < watchEvery {
		m.owed = true
		return
	}
	m.notified, m.owed = now, false
	select {
	case m.watch <- struct{}{}: // never blocks
	default:
	}
}

// CacheFile keeps the state in a file: what it holds is taken over now, and
// every change is written to it, durably before anything depends on it. The
// file is made if need be, readable by its owner alone, and so are folders
// above it. Several processes may share one file.
//
// Call it before the Manager is used; it starts nothing. It returns an error if
// the file can't be read or written, is a folder, or was written by a newer
// version of this package.
func (m *Manager) CacheFile(name string) error {
	err := m.log.Open(name, journal.Options{
		Expect: m.hosts.Grow,
		Apply:  m.merge,
		Import: importRSC,
		Warn: func(err error) {
			m.logger().Error("letsencrypt: damage in the cache file", "file", name, "err", err)
		},
	})
	if err != nil {
		return fmt.Errorf("letsencrypt: CacheFile: %w", err)
	}
	m.mu.Lock()
	m.kept = true
	m.mu.Unlock()
	return nil
}

// writable returns an error if the state can't be written: then nothing is
// ordered, lest it be lost. What is written is what the buckets hold.
func (m *Manager) writable() error {
	m.mu.Lock()
	warn := !m.kept && m.watch == nil && m.Storage == nil && !m.told
	m.told = m.told || warn
	m.putLocked(m.levelRecordsLocked()...)
	m.mu.Unlock()
	if warn {
		m.logger().Warn("letsencrypt: certificates are kept in memory alone and lost when the program ends: see CacheFile")
	}
	if err := m.sync(); err != nil {
		return fmt.Errorf("%w: %w", errUnwritten, err)
	}
	return nil
}

var errUnwritten = errors.New("nothing is ordered while the state can't be written")

func (m *Manager) addCALocked(c CA) {
	c.Directory = cmp.Or(c.Directory, LetsEncrypt)
	m.authorities = append(m.authorities, &authority{
		CA:    c,
		slots: make(chan struct{}, maxFlights),
		account: &ca.Account{
			Directory: c.Directory,
			HTTP:      c.Client,
			EAB:       c.EAB,
			Load:      func() (ca.Credentials, bool) { return m.credentials(c.Directory) },
			Keep:      func(cred ca.Credentials) error { return m.keepAccount(c.Directory, cred) },
			Contact:   m.contact,
			Share:     func(ctx context.Context) (func(), error) { return m.shareAccount(ctx, c.Directory) },
		},
	})
}

func (m *Manager) register(ctx context.Context, a *authority, email string, prompt func(string) bool) error {
	if prompt != nil {
		d, err := a.account.Reader().Directory(ctx)
		if err != nil {
			return err
		}
		if d.Meta.Terms != "" && !prompt(d.Meta.Terms) {
			return m.refuseTerms(email, d.Meta.Terms)
		}
	}
	if err := m.pullAccount(ctx, a.Directory); err != nil {
		return err
	}
	m.mu.Lock()
	m.prompt = prompt
	had, changed := m.accounts[a.Directory].URL != "", m.registration.Email != email
	m.pardonLocked()
	m.setLocked(record(kindRegister, onlyOne, registration{Email: email, Prompted: prompt != nil}))
	m.mu.Unlock()
	a.account.Retry()
	client, err := a.account.Client(ctx)
	switch {
	case err == nil && !had:
		m.mu.Lock()
		m.resumeLocked(a)
		m.mu.Unlock()
	case err == nil && changed:
		err = client.Update(ctx, contact(email))
	}
	return err
}

// refuseTerms keeps that the terms of service were not agreed to.
func (m *Manager) refuseTerms(email, url string) error {
	m.set(record(kindRegister, onlyOne, registration{Email: email, Prompted: true, Refused: true}))
	m.sync() // reports its error
	return fmt.Errorf("%w: %s", errTerms, url)
}

// agree puts terms of service that a CA has changed to Register's prompt. If
// Register was called without one, or not at all, they are agreed to.
func (m *Manager) agree(a *authority, client *ca.Client, f *ca.Failure, since time.Time) error {
	return a.account.Agree(m.ctx, client, f.Action, since, func(url string) error {
		m.mu.Lock()
		prompt, reg := m.prompt, m.registration
		m.mu.Unlock()
		switch {
		case prompt != nil && !prompt(url):
			return m.refuseTerms(reg.Email, url)
		case prompt == nil && reg.Prompted:
			return fmt.Errorf("%w: there are new ones, %s, and no prompt to put them to: call Register with one", errTerms, url)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.reportLocked(Event{Kind: EventTerms, CA: a.Directory})
		return nil
	})
}

// pardonLocked has the CAs asked and the hosts tried again that failed for want
// of agreement to terms of service.
func (m *Manager) pardonLocked() {
	for url, p := range m.pauses {
		if strings.Contains(p.Error, errTerms.Error()) {
			m.setLocked(journal.Delete(kindPause, url))
		}
	}
	for _, h := range m.hosts.All() {
		if h.trouble != nil && strings.Contains(h.trouble.Error, errTerms.Error()) {
			m.setLocked(record(kindBackoff, h.name, trouble{Noted: h.trouble.Noted, Failed: h.trouble.Failed, Limits: h.trouble.Limits, Paused: h.trouble.Paused, Said: h.trouble.Said}))
		}
	}
}

var errTerms = errors.New("the terms of service were not agreed to")

// contact returns the subscriber's address for a new account, or an error if
// terms of service were refused.
func (m *Manager) contact() ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.registration.Refused {
		return nil, fmt.Errorf("%w: call Register", errTerms)
	}
	return contact(m.registration.Email), nil
}

func contact(email string) []string {
	if email == "" {
		return nil
	}
	return []string{"mailto:" + email}
}

func (m *Manager) credentials(directory string) (ca.Credentials, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	cred, ok := m.accounts[directory]
	return cred, ok
}

// keepAccount keeps an account. Its key must be durable before the CA sees it;
// that the CA has answered may come to be known later.
func (m *Manager) keepAccount(directory string, cred ca.Credentials) error {
	m.mu.Lock()
	m.putLocked(record(kindAccount, directory, cred))
	if m.accounts == nil {
		m.accounts = make(map[string]ca.Credentials)
	}
	m.accounts[directory] = cred
	if cred.URL != "" {
		m.reportLocked(Event{Kind: EventAccount, CA: directory})
	}
	m.mu.Unlock()
	if err := m.stored(kindAccount, directory); cred.URL == "" {
		return err
	}
	return nil
}

// A job is an order to make or to take up again.
type job struct {
	ca.Job
	key []byte // the certificate's, PKCS #8
}

// job returns the order for a host that was made at the CA before, or a new
// one, which replaces the certificate that we hold from there.
func (m *Manager) job(f *flight, a *authority, client *ca.Client) (*job, error) {
	h := f.host
	j := &job{Job: ca.Job{Host: h.name, Profile: a.Profile, Chain: a.Chain, MustStaple: m.MustStaple}}
	rec, old, none := m.readCert(h.name)
	if _, addr := hostname.IsAddr(h.name); addr && a.Profile == "" {
		d, err := client.Directory(m.ctx)
		if err != nil {
			return nil, err
		}
		if _, ok := d.Meta.Profiles[shortLived]; ok {
			j.Profile = shortLived
		}
	}
	m.mu.Lock()
	begun := m.orders[h.name]
	ok := m.begunLocked(h)
	m.mu.Unlock()
	var err error
	// One whose key the certificate has was seen through, and then we crashed.
	if ok && begun.CA == a.Directory && begun.Account == client.KID() && !bytes.Equal(begun.Key, rec.Key) && !m.compromised(h.name, begun.Key) {
		j.OrderURL, j.key = begun.URL, begun.Key
		j.Key, err = parseKey(begun.Key)
	}
	if j.Key == nil || err != nil {
		j.OrderURL = ""
		if j.Key, j.key, err = m.newKey(); err != nil {
			return nil, &ca.Failure{Class: ca.Ours, Step: "making the key", Err: err}
		}
	}
	if m.compromised(h.name, j.key) {
		return nil, &ca.Failure{Class: ca.Ours, Step: "making the key", Err: errors.New("NewKey made one that is compromised: see Revoke")}
	}
	if none == nil && rec.CA == a.Directory && rec.Account == client.KID() {
		if leaf, err := x509.ParseCertificate(old.Certificate[0]); err == nil {
			j.Replaces, _ = certs.ID(leaf) // without an identifier it replaces none
		}
	}
	ours := j.OrderURL
	j.Keep = func(url string) error {
		if err := m.unrivaled(h.name, begun); err != nil {
			return err
		}
		ours = url
		m.set(record(kindOrder, h.name, orderRecord{CA: a.Directory, Account: client.KID(), URL: url, Key: j.key, Made: time.Now().Unix()}))
		if err := m.stored(kindOrder, h.name); err != nil {
			return err
		}
		return m.stillOurs(m.ctx, f, ours, j.key)
	}
	j.Finalizing = func(ctx context.Context) error { return m.stillOurs(ctx, f, ours, j.key) }
	return j, nil
}

// unrivaled returns an error if a member of the fleet that does not know of us has
// kept an order for a host since we knew of this one, while ours was being made.
func (m *Manager) unrivaled(host string, known orderRecord) error {
	if err := m.pull(m.ctx, kindOrder, host); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if o, ok := m.orders[host]; ok && (o.URL != known.URL || !bytes.Equal(o.Key, known.Key)) {
		return fmt.Errorf("%w: it has the lock as well", errElsewhere)
	}
	return nil
}

// stillOurs returns an error if a member of the fleet that does not know of us,
// because one of us has lost the lock, has obtained the certificate or kept an
// order, or if that can't be told. Such an order is the one to finish, for both of
// us, with its key.
func (m *Manager) stillOurs(ctx context.Context, f *flight, url string, key []byte) error {
	for _, kind := range []string{kindOrder, kindCert} {
		if err := m.pull(ctx, kind, f.host.name); err != nil {
			return err // the order is kept: it is finished when this can be known
		}
	}
	m.mu.Lock()
	o := m.orders[f.host.name]
	m.mu.Unlock()
	if o.URL != url || !bytes.Equal(o.Key, key) || m.overtaken(f) != nil {
		return fmt.Errorf("%w: it has the lock as well", errElsewhere)
	}
	return nil
}

// theirs returns the certificate of another member of the fleet that finalized the
// same order, with a key of its own, a moment before we did. It is about to store it.
func (m *Manager) theirs(f *flight, err error) *tls.Certificate {
	if m.Storage == nil || f.renew || !errors.Is(err, certs.ErrOtherKey) {
		return nil
	}
	for n := 1; n <= looks; n++ {
		if m.pull(m.ctx, kindCert, f.host.name) == nil {
			if cert := m.overtaken(f); cert != nil {
				return cert
			}
		}
		select {
		case <-time.After(backoff(n, lockFirst, lockMost)):
		case <-m.ctx.Done():
			return nil
		}
	}
	return nil
}

// resumable reports whether the order for a host that we have is one that the
// account at the CA can finish.
func (m *Manager) resumable(h *host, a *authority, client *ca.Client) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.orders[h.name]
	return m.begunLocked(h) && o.CA == a.Directory && o.Account == client.KID()
}

// shortLived is the profile that Let's Encrypt, and whoever goes by its names,
// certifies addresses under.
const shortLived = "shortlived"

// begunLocked reports whether there is an order for the host to finish. One
// from before its certificate was made is not: in a file that several processes
// write and rewrite, what one of them deleted may come back.
func (m *Manager) begunLocked(h *host) bool {
	o, ok := m.orders[h.name]
	return ok && o.Made >= h.notBefore
}

// newKey returns a key for a certificate, and how it will be kept.
func (m *Manager) newKey() (crypto.Signer, []byte, error) {
	make := m.NewKey
	if make == nil {
		make = func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }
	}
	key, err := make()
	if err != nil {
		return nil, nil, fmt.Errorf("NewKey: %w", err)
	}
	der, err := certs.MarshalKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("NewKey made a key that can't be kept: %w", err)
	}
	return key, der, nil
}

// publish keeps a new certificate, durably, and serves it.
func (m *Manager) publish(h *host, a *authority, client *ca.Client, key []byte, c *ca.Certificate) (*tls.Certificate, error) {
	signer, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	from := chainRecord{Above: c.Chain[1:], CA: a.Directory, Account: client.KID(), Profile: c.Profile, Challenge: c.Challenge, Stapled: certs.HasResponder(c.Leaf)}
	records := append(certRecords(h.name, from, c.Leaf, key), journal.Delete(kindOrder, h.name))
	chain := records[0].Name()
	if _, ok := m.log.Get(kindChain, chain); ok {
		records = records[1:] // most hosts have the same one
	}
	before, _, _ := m.readCert(h.name)
	old := m.predecessor(h, c.Leaf)
	m.mu.Lock()
	if h.next == nil { // else what is served is from before that
		if m.befores == nil {
			m.befores = make(map[*host]chainRecord)
		}
		m.befores[h] = before.chainRecord
	}
	m.putLocked(records...)
	delete(m.orders, h.name)
	m.mu.Unlock()
	m.flushHost(h.name) // if it fails it says so, and is tried again; the certificate serves meanwhile
	cert := &tls.Certificate{Certificate: c.Chain, PrivateKey: signer}
	if shared, err := m.readChain(chain); err == nil {
		cert.Certificate = append(c.Chain[:1:1], shared.Above...)
	}
	s := newStapled(h, a, cert, from.Stapled)
	if from.Stapled && certs.MustStaple(c.Leaf) {
		ctx, cancel := context.WithTimeout(m.ctx, stapleWait)
		defer cancel()
		if resp, err := m.fetchStaple(ctx, s); err == nil && !resp.Revoked {
			s.take(resp) // else it is tried again, and reported
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.takeOverLocked(h, a, c, s, old), nil
}

// predecessor returns the certificate that is served for a host until the new
// one has its first staple, nil if the new one needs none.
func (m *Manager) predecessor(h *host, leaf *x509.Certificate) *tls.Certificate {
	if !certs.MustStaple(leaf) || !certs.HasResponder(leaf) {
		return nil
	}
	if old := h.leaf.Load(); old != nil {
		return old
	}
	return m.firstUse(h)
}

// takeOverLocked puts a new certificate in the place of the old one. One that
// must be stapled waits for its staple, as long as the old one lives.
func (m *Manager) takeOverLocked(h *host, a *authority, c *ca.Certificate, s *stapled, old *tls.Certificate) *tls.Certificate {
	kind, now := EventObtained, time.Now().Round(0)
	var limits trouble // of the CAs that did not issue
	if h.trouble != nil {
		h.early = uint16(min(h.trouble.Early, math.MaxUint16))
		limits.Noted, limits.Limits, limits.Paused, limits.Said = h.trouble.Noted, h.trouble.Limits, h.trouble.Paused, h.trouble.Said
	}
	for _, kind := range []string{kindBackoff, kindMoment} {
		if _, ok := m.log.Get(kind, h.name); ok {
			m.setLocked(journal.Delete(kind, h.name))
		}
	}
	if len(limits.Limits)+len(limits.Paused) > 0 {
		m.setLocked(record(kindBackoff, h.name, limits))
	}
	if h.held() {
		kind = EventRenewed
	}
	serve, until := s.served, h.expiry()
	if h.next != nil { // the old one waits still, and its predecessor is served
		until = h.next.until
	}
	wait := s.last == nil && old != nil && now.Before(until)
	if wait {
		serve = cmp.Or(h.leaf.Load(), old)
	}
	h.redone = h.revoked
	h.hold(c.Leaf.NotBefore.Unix(), c.Leaf.NotAfter.Unix(), serve)
	if wait {
		h.next, s.until = s, until
	} else {
		delete(m.befores, h)
	}
	h.unmark(asked | used)
	h.since, h.poll = uint32(now.Unix()), now.UnixNano()
	m.newest = max(m.newest, h.notBefore)
	m.cacheLocked(h)
	m.keepStapleLocked(s, now)
	m.settleLocked(a, h, nil, now)
	m.reportLocked(Event{Kind: kind, Host: h.name, CA: a.Directory, NotAfter: c.Leaf.NotAfter, Next: time.Unix(0, h.renewal)})
	m.tooSoonLocked(h, now)
	return serve
}

// hold notes a new certificate. A nil leaf is read from the state when the
// first client asks for it.
func (h *host) hold(notBefore, notAfter int64, leaf *tls.Certificate) {
	h.notBefore, h.notAfter, h.next = notBefore, notAfter, nil
	h.evicted, h.stored, h.dead, h.revoked = false, false, false, false
	h.turnedBack = 0
	h.renewal = certs.RenewAt(time.Unix(notBefore, 0), time.Unix(notAfter, 0), mathrand.Float64()).UnixNano()
	h.leaf.Store(leaf)
}

// certRecords returns the records that keep a certificate, its chain's first.
func certRecords(host string, from chainRecord, leaf *x509.Certificate, key []byte) []journal.Record {
	value, err := json.Marshal(from)
	if err != nil {
		panic("letsencrypt: internal error: " + err.Error()) // it always marshals
	}
	sum := sha256.Sum256(value)
	rec := certRecord{Chain: hex.EncodeToString(sum[:16]), Leaf: leaf.Raw, Key: key}
	return []journal.Record{
		journal.Format(kindChain, rec.Chain, nil, value),
		record(kindCert, host, rec, leaf.NotBefore.Unix(), leaf.NotAfter.Unix()),
	}
}

func leafHash(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// readCert returns the certificate that the state has for the host.
func (m *Manager) readCert(host string) (certRecord, *tls.Certificate, error) {
	var rec certRecord
	r, ok := m.log.Get(kindCert, host)
	if !ok {
		return rec, nil, errors.New("no certificate is kept")
	}
	if err := json.Unmarshal([]byte(r.JSON()), &rec); err != nil {
		return rec, nil, fmt.Errorf("reading the certificate that is kept: %w", err)
	}
	key, err := parseKey(rec.Key)
	if err != nil {
		return rec, nil, fmt.Errorf("reading the key that is kept: %w", err)
	}
	chain, err := m.readChain(rec.Chain)
	if err != nil {
		return rec, nil, err
	}
	rec.came(chain)
	return rec, rec.certificate(key), nil
}

// came notes how a certificate came in.
func (r *certRecord) came(from chainRecord) {
	if from.old {
		r.Above = from.Above
		return
	}
	r.chainRecord = from
}

// certificate returns what clients are given.
func (r *certRecord) certificate(key crypto.Signer) *tls.Certificate {
	return &tls.Certificate{Certificate: append([][]byte{r.Leaf}, r.Above...), PrivateKey: key}
}

var errNoChain = errors.New("the chain of the certificate that is kept is not there")

// readChain returns the chain with the given hash. All hosts share one copy.
func (m *Manager) readChain(hash string) (chainRecord, error) {
	m.mu.Lock()
	chain, ok := m.chains[hash]
	m.mu.Unlock()
	if ok {
		return chain, nil
	}
	r, ok := m.log.Get(kindChain, hash)
	if !ok {
		return chain, fmt.Errorf("%w: %s", errNoChain, hash)
	}
	chain, err := parseChain(r)
	if err != nil {
		return chain, fmt.Errorf("reading the chain that is kept: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.chains == nil {
		m.chains = make(map[string]chainRecord)
	}
	m.chains[hash] = chain
	return chain, nil
}

func parseChain(r journal.Record) (chain chainRecord, err error) {
	if chain.old = strings.HasPrefix(r.JSON(), "["); chain.old {
		err = json.Unmarshal([]byte(r.JSON()), &chain.Above)
	} else {
		err = json.Unmarshal([]byte(r.JSON()), &chain)
	}
	return chain, err
}

func (m *Manager) status(name string) HostStatus {
	s := HostStatus{Host: name}
	if cert := m.own.Get(name); cert != nil {
		s.Serial, s.NotAfter = cert.Leaf.SerialNumber.Text(16), cert.Leaf.NotAfter
		return s
	}
	if rec, cert, err := m.readCert(name); err == nil {
		s.CA, s.Profile, s.Challenge = rec.CA, rec.Profile, rec.Challenge
		if leaf, err := x509.ParseCertificate(cert.Certificate[0]); err == nil {
			s.Serial, s.NotAfter = leaf.SerialNumber.Text(16), leaf.NotAfter
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hosts.Get(name)
	if h == nil {
		return s
	}
	if h.held() && m.wantedLocked(h, time.Now().Round(0)) {
		s.Renewal = time.Unix(0, h.renewal)
	}
	if s.NotAfter.IsZero() {
		s.NotAfter = h.expiry()
	}
	if s.Err = h.lastError(); s.Err != nil {
		s.Retry = h.trouble.Retry
	} else if m.unwritten != nil && m.Storage != nil {
		s.Err, s.Retry = &HostError{Host: name, Err: m.unwritten, Retry: m.writeAgain}, m.writeAgain
	}
	if h.next != nil && s.Err == nil {
		s.Err = &HostError{Host: name, CA: s.CA, Err: errBare}
	}
	if f := h.flight; f != nil && f.queue != nil && s.Err == nil {
		now := time.Now().Round(0)
		if until, err := m.openLocked(h, nil, now); err != nil {
			s.Retry, s.Err = until, &HostError{Host: name, Err: err, Retry: until}
		} else if m.shortage != nil {
			s.Err = &HostError{Host: name, Err: m.shortage}
		}
	}
	return s
}

// reasons are those that a subscriber may give (RFC 5280, section 5.3.1).
var reasons = []acme.CRLReasonCode{acme.CRLReasonUnspecified, acme.CRLReasonKeyCompromise,
	acme.CRLReasonAffiliationChanged, acme.CRLReasonSuperseded, acme.CRLReasonCessationOfOperation}

// startRevocation keeps, durably, that a host's certificate is to be revoked, so
// that whatever happens it will be. If another is served, until the one in the
// state has its first staple, that is to be revoked, too. It returns the hash of
// the one in the state, and of all that were marked.
func (m *Manager) startRevocation(ctx context.Context, name string, reason acme.CRLReasonCode) (current string, marked []string, err error) {
	if !slices.Contains(reasons, reason) {
		return "", nil, fmt.Errorf("reason %d is not a subscriber's to give", reason)
	}
	if reason == acme.CRLReasonCessationOfOperation { // which is not to come before an order's end
		if err := m.settled(ctx, name); err != nil {
			return "", nil, err
		}
	}
	if err := m.pull(ctx, kindCert, name); err != nil {
		return "", nil, err
	}
	rec, cert, err := m.readCert(name)
	if err != nil {
		return "", nil, err
	}
	if rec.CA == "" {
		return "", nil, errors.New("it is not known which CA issued it")
	}
	m.mu.Lock()
	err = m.markLocked(&marked, name, rec.CA, rec.Account, cert, reason)
	if h := m.hosts.Get(name); err == nil && h != nil && h.leaf.Load() != nil {
		if before, ok := m.befores[h]; ok {
			err = m.markLocked(&marked, name, before.CA, before.Account, h.leaf.Load(), reason)
		}
	}
	m.mu.Unlock()
	for _, hash := range marked {
		err = cmp.Or(err, m.stored(kindRevoked, hash))
	}
	if err != nil {
		m.dropRevocations(marked)
	}
	return leafHash(rec.Leaf), marked, err
}

// markLocked marks a certificate for revocation, unless it is marked for a graver
// reason.
func (m *Manager) markLocked(marked *[]string, host, ca, account string, cert *tls.Certificate, reason acme.CRLReasonCode) error {
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	hash := leafHash(leaf.Raw)
	if was := m.revocations[hash]; was == nil || was.waits() {
		m.setLocked(record(kindRevoked, hash, revocation{Host: host, CA: ca, Account: account, Reason: reason,
			Until: leaf.NotAfter.Unix(), Public: publicHash(key), Leaf: leaf.Raw, Key: key}))
	}
	m.revocations[hash].trying = true // Revoke does
	*marked = append(*marked, hash)
	return nil
}

// dropRevocations gives up revocations that were to follow a replacement.
func (m *Manager) dropRevocations(marked []string) {
	m.mu.Lock()
	for _, hash := range marked {
		r := m.revocations[hash]
		switch {
		case r == nil:
		case r.waits():
			m.setLocked(journal.Delete(kindRevoked, hash))
		default:
			r.trying = false
		}
	}
	m.mu.Unlock()
	m.sync() // reports its error
}

// finishBegun finishes what Revoke began before with certificates for a host that
// were replaced since, and reports whether there is nothing left to do.
func (m *Manager) finishBegun(ctx context.Context, name string, reason acme.CRLReasonCode) (done bool, err error) {
	if err := m.pull(ctx, kindCert, name); err != nil {
		return true, &HostError{Host: name, Err: err}
	}
	current := m.current(name)
	var begun []string
	m.mu.Lock()
	for hash, r := range m.revocations {
		if r.Host == name && r.pending() && hash != current {
			begun = append(begun, hash)
			done = done || r.Reason == reason
		}
	}
	if r := m.revocations[current]; r != nil && r.pending() {
		done = false
	}
	m.mu.Unlock()
	err = m.finishRevocations(ctx, begun)
	return done || err != nil, err
}

// finishRevocations has the CA revoke what is marked.
func (m *Manager) finishRevocations(ctx context.Context, marked []string) error {
	var errs []error
	for _, hash := range marked {
		if err := m.finishRevocation(ctx, hash); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// replace obtains a certificate for a host in place of the one with the hash,
// which is to be revoked. That of a compromised key does not wait for it forever.
func (m *Manager) replace(ctx context.Context, name, hash string, compromised bool) error {
	if compromised {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, maxWait, errWait)
		defer cancel()
	}
	for m.current(name) == hash { // a flight that was under way may have brought it
		f, err := m.manage(name, true)
		if err == nil {
			err = m.await(ctx, f)
		}
		if he, ok := err.(*HostError); ok {
			return &HostError{Host: name, CA: he.CA, Err: fmt.Errorf("there is no new certificate: %w", he.Err), Retry: he.Retry}
		} else if err != nil {
			return err
		}
	}
	return nil
}

// current returns the hash of the leaf that the state has for a host.
func (m *Manager) current(name string) string {
	rec, _, err := m.readCert(name)
	if err != nil {
		return ""
	}
	return leafHash(rec.Leaf)
}

// settled waits until no flight for a host is under way.
func (m *Manager) settled(ctx context.Context, name string) error {
	for {
		m.mu.Lock()
		h := m.hosts.Get(name)
		if h == nil || h.flight == nil || h.flight.queue != nil {
			m.mu.Unlock()
			return nil
		}
		f := h.flight
		m.mu.Unlock()
		if f.wait(ctx, nil); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// finishRevocation has the CA revoke a certificate, and sees it out of the state.
func (m *Manager) finishRevocation(ctx context.Context, hash string) error {
	m.mu.Lock()
	r := m.revocations[hash]
	if r == nil || !r.pending() {
		m.mu.Unlock()
		return nil
	}
	r.trying = true
	todo := *r
	m.mu.Unlock()
	err := m.revokeAlone(ctx, hash, &todo)
	m.mu.Lock()
	r.trying, r.next = false, time.Now().Add(revokeAgain)
	if f, ok := errors.AsType[*ca.Failure](err); ok {
		r.next = time.Now().Add(max(revokeAgain, f.Retry))
	}
	if err == nil && m.revocations[hash] == r {
		m.revokedByUsLocked(hash, &todo)
	}
	m.mu.Unlock()
	if err != nil {
		return &HostError{Host: todo.Host, CA: todo.CA, Err: fmt.Errorf("the certificate is not revoked yet, which is tried again: %w", err)}
	}
	err = m.stored(kindRevoked, hash)
	if todo.compromised() {
		err = errors.Join(err, m.log.Compact())
	}
	if err != nil {
		return &HostError{Host: todo.Host, CA: todo.CA, Err: fmt.Errorf("revoked, but not yet erased: %w", err)}
	}
	return nil
}

// revokeAlone has the CA revoke a certificate, unless another member of the fleet
// has.
func (m *Manager) revokeAlone(ctx context.Context, hash string, todo *revocation) error {
	if m.Storage != nil {
		unlock, err := m.lock(ctx, hostLock(todo.Host), func() (bool, error) { return false, nil })
		defer unlock()
		if err == nil {
			err = m.pull(ctx, kindRevoked, hash)
		}
		if err != nil {
			return err
		}
		m.mu.Lock()
		r := m.revocations[hash]
		m.mu.Unlock()
		if r == nil || !r.pending() {
			return nil
		}
	}
	return m.revoke(ctx, todo)
}

// revokedByUsLocked notes that the CA has revoked a certificate as asked.
func (m *Manager) revokedByUsLocked(hash string, r *revocation) {
	if h := m.hosts.Get(r.Host); h != nil && r.Reason == acme.CRLReasonCessationOfOperation {
		h.managed = false
		h.unmark(asked | used)
	}
	done := *r
	done.Leaf, done.Key = nil, nil
	m.setLocked(record(kindRevoked, hash, done))
	m.reportLocked(Event{Kind: EventRevoked, Host: r.Host, CA: r.CA, Err: errAsked, NotAfter: time.Unix(r.Until, 0)})
}

var errBare = errors.New("the certificate must be stapled and waits for its first OCSP response; the one before is served")

var errAsked = errors.New("as the program asked for")

// seeToRevocationsLocked finishes what Revoke could not, because the CA failed
// or we did, and forgets what has expired.
func (m *Manager) seeToRevocationsLocked(now time.Time) {
	for hash, r := range m.revocations {
		switch {
		case now.Unix() > r.Until:
			m.setLocked(journal.Delete(kindRevoked, hash))
		case r.pending() && !r.trying && !now.Before(r.next):
			r.trying = m.goLocked(func() { m.tryRevocation(hash, r) })
		}
	}
}

// tryRevocation is a revocation that nobody waits for.
func (m *Manager) tryRevocation(hash string, r *revocation) {
	err := m.pull(m.ctx, kindCert, r.Host)
	if err == nil && (!r.waits() || m.current(r.Host) != hash) {
		err = m.finishRevocation(m.ctx, hash)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.trying = false; err != nil && m.ctx.Err() == nil {
		m.reportLocked(Event{Kind: EventFailed, Host: r.Host, CA: r.CA, Err: err, Next: r.next})
	}
}

// authority returns the CA with a directory URL, nil if it is not one of CAs.
func (m *Manager) authority(directory string) *authority {
	for _, a := range m.authorities {
		if a.Directory == directory {
			return a
		}
	}
	return nil
}

// revoke has the CA revoke a certificate, again and again while it fails.
func (m *Manager) revoke(ctx context.Context, r *revocation) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(m.ctx, func() { cancel(http.ErrServerClosed) })()
	key, err := parseKey(r.Key)
	if err != nil {
		return err
	}
	byKey := r.compromised()
	for n := 1; ; n++ {
		client, signer, err := m.revoker(ctx, r, key, byKey)
		if err == nil {
			err = client.Revoke(ctx, signer, r.Leaf, r.Reason)
		}
		f, ok := errors.AsType[*ca.Failure](err)
		switch {
		case !ok:
			return err
		case !byKey && (f.Class == ca.NoAccount || f.Class == ca.Policy):
			byKey = true // perhaps the account is not the one that ordered
			continue
		case !f.Passing():
			return err
		}
		select {
		case <-time.After(max(f.Retry, backoff(n, revokeFirst, pauseFirst))):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// revoker returns who asks for a revocation, and the key that signs if it is not
// the account's. That a key is compromised Let's Encrypt believes only who has
// it, and takes that for the reason from whoever signs with it.
func (m *Manager) revoker(ctx context.Context, r *revocation, key crypto.Signer, byKey bool) (*ca.Client, crypto.Signer, error) {
	a := m.authority(r.CA)
	if a == nil {
		return ca.New(r.CA, nil, nil, ""), key, nil
	}
	if byKey {
		return a.account.Reader(), key, nil
	}
	client, err := a.account.Client(ctx)
	if err == nil && client.KID() != r.Account {
		return a.account.Reader(), key, nil
	}
	return client, nil, err
}

func parseKey(der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T can't sign", key)
	}
	return signer, nil
}

// importRSC returns the records for what rsc.io/letsencrypt's Marshal wrote.
func importRSC(data []byte) ([]journal.Record, error) {
	var old struct {
		Email *string
		Hosts []string
		Certs json.RawMessage
	}
	if err := json.Unmarshal(data, &old); err != nil {
		return nil, fmt.Errorf("this is neither this package's state nor rsc.io/letsencrypt's: %w", err)
	}
	if old.Email == nil || old.Certs == nil { // it always writes both
		return nil, errors.New("this JSON is not rsc.io/letsencrypt's state")
	}
	var pairs map[string]struct{ Cert, Key string }
	if err := json.Unmarshal(old.Certs, &pairs); err != nil {
		return nil, fmt.Errorf("reading the certificates: %w", err)
	}
	var records []journal.Record
	if *old.Email != "" {
		records = append(records, record(kindRegister, onlyOne, registration{Email: *old.Email}))
	}
	if old.Hosts != nil {
		records = append(records, record(kindHosts, onlyOne, old.Hosts))
	}
	for name, c := range pairs {
		host, err := hostname.Canonical(name)
		if err != nil {
			return nil, fmt.Errorf("the certificate for %q: %w", name, err)
		}
		rs, err := importPEM(host, c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("the certificate for %s: %w", host, err)
		}
		records = append(records, rs...)
	}
	return records, nil
}

// importPEM returns the records for a certificate chain and key in PEM.
func importPEM(host, chain, key string) ([]journal.Record, error) {
	pair, err := tls.X509KeyPair([]byte(chain), []byte(key))
	if err != nil {
		return nil, err
	}
	der, err := certs.MarshalKey(pair.PrivateKey)
	if err != nil {
		return nil, err
	}
	// It may have expired, or be about to: then it is replaced.
	leaf, err := certs.Check(pair.Certificate, nil, host, pair.Leaf.NotBefore)
	if err != nil {
		return nil, err
	}
	from := chainRecord{Above: pair.Certificate[1:], Stapled: certs.HasResponder(leaf)}
	return certRecords(host, from, leaf, der), nil
}
