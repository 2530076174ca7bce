"""XMP sidecars in the manner of the programs that write them, each with tags that a person gave."""

LIGHTROOM = """<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000 1.000000,">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
   xmp:Rating="4"
   xmp:Label='Red &amp; "wild" &#10;line'
   exif:GPSLatitude="48,12.5N"
   exif:GPSLongitude="16,22.3E"
   crs:Exposure2012="+0.35">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>Dog</rdf:li>
     <rdf:li>Wien</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <lr:hierarchicalSubject>
    <rdf:Bag>
     <rdf:li>Dog</rdf:li>
     <rdf:li>Places|Austria|Wien</rdf:li>
    </rdf:Bag>
   </lr:hierarchicalSubject>
   <crs:ToneCurvePV2012>
    <rdf:Seq>
     <rdf:li>0, 0</rdf:li>
     <rdf:li>255, 255</rdf:li>
    </rdf:Seq>
   </crs:ToneCurvePV2012>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""

DIGIKAM = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:digiKam="http://www.digikam.org/ns/1.0/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:MicrosoftPhoto="http://ns.microsoft.com/photo/1.0/"
   digiKam:PickLabel="0">
   <digiKam:TagsList>
    <rdf:Seq>
     <rdf:li>Tiere/dog</rdf:li>
     <rdf:li>Orte/Wien</rdf:li>
    </rdf:Seq>
   </digiKam:TagsList>
   <MicrosoftPhoto:LastKeywordXMP>
    <rdf:Bag>
     <rdf:li>Tiere/dog</rdf:li>
     <rdf:li>Orte/Wien</rdf:li>
    </rdf:Bag>
   </MicrosoftPhoto:LastKeywordXMP>
   <lr:hierarchicalSubject>
    <rdf:Bag>
     <rdf:li>Tiere|dog</rdf:li>
     <rdf:li>Orte|Wien</rdf:li>
    </rdf:Bag>
   </lr:hierarchicalSubject>
   <dc:subject>
    <rdf:Bag>
     <rdf:li>dog</rdf:li>
     <rdf:li>Wien</rdf:li>
    </rdf:Bag>
   </dc:subject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
PADDING<?xpacket end="w"?>""".replace("PADDING", f"{' ' * 80}\n" * 20)

DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
   xmp:Rating="1"
   darktable:xmp_version="5"
   darktable:history_end="1">
   <!-- kept by hand -->
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:operation="exposure"
      darktable:params="gz02eJxjYGBgYAFiCQYYOOHEgAY0"/>
    </rdf:Seq>
   </darktable:history>
   <dc:subject>
    <rdf:Seq>
     <rdf:li>dog</rdf:li>
     <rdf:li>Wien</rdf:li>
    </rdf:Seq>
   </dc:subject>
   <lr:hierarchicalSubject>
    <rdf:Seq>
     <rdf:li>darktable|format|jpg</rdf:li>
     <rdf:li>dog</rdf:li>
     <rdf:li>orte|Wien</rdf:li>
    </rdf:Seq>
   </lr:hierarchicalSubject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""

# Several descriptions, as ExifTool writes them, single quotes, other prefixes, one line, and an empty list.
EXIFTOOL = """<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='Image::ExifTool 12.57'>
<R:RDF xmlns:R='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>

 <R:Description R:about='uuid:1 &amp; 2'
  xmlns:d='http://purl.org/dc/elements/1.1/'>
  <d:subject><R:Bag><R:li>dog</R:li><R:li>Wien</R:li></R:Bag></d:subject>
 </R:Description>

 <R:Description R:about='uuid:1 &amp; 2'
  xmlns:xmp='http://ns.adobe.com/xap/1.0/'
  xmlns:odd='urn:somebody:else'>
  <xmp:Rating>5</xmp:Rating>
  <odd:note R:parseType='Resource'><odd:deep><![CDATA[a < b]]></odd:deep></odd:note>
 </R:Description>
</R:RDF>
</x:xmpmeta>
<?xpacket end='w'?>"""

# Nobody's keywords: only a rating, in the shortest form.
RATING = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="2"/>'
    "</rdf:RDF></x:xmpmeta>"
)

WITH_TAGS = {
    "lightroom": LIGHTROOM,
    "digikam": DIGIKAM,
    "darktable": DARKTABLE,
    "exiftool": EXIFTOOL,
}
"""Each with the tags "dog", in some spelling, and "Wien"."""
